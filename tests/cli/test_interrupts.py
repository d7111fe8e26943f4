"""Ctrl-C in a process of its own, also where Python cannot act on it."""

import signal
import subprocess
import sys
import time

import pytest

pytestmark = [
    pytest.mark.backend_free,
    pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT"),
]

# A single call of C code that takes minutes, as the compiler of XLA does.
BUSY = "hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)"
# What its end waits for, such as threads that read pictures.
SLOW_END = "threading.Thread(target=time.sleep, args=[60]).start(); time.sleep(60)"

# It takes the signal again: a job in the background of a shell is started without it.
_COMMAND = """
import hashlib, signal, sys, threading, time
signal.signal(signal.SIGINT, signal.default_int_handler)
from keras_mixer.cli import main

def run(options, *, owns_process):
    print("running", flush=True)
    {}

sys.modules["keras_mixer.cli.main"]._run = run
sys.argv[1:] = ["finetune", "--data", "pictures", "--output", "run"]
sys.exit(main())
"""


MESSAGE = "keras-mixer finetune: interrupted. Run it again with --resume to go on.\n"


def interrupted(code):
    """Exit status, standard error, and the seconds it took to end."""
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout.readline() == "running\n"
            time.sleep(0.1)
            start = time.monotonic()
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=50)
            seconds = time.monotonic() - start
        finally:
            process.kill()
    return process.returncode, err, seconds


@pytest.mark.parametrize("work", [BUSY, SLOW_END, "time.sleep(60)"])
def test_ctrl_c_ends_a_command_and_says_how_to_go_on(work):
    code, err, seconds = interrupted(_COMMAND.format(work))
    assert code == 130 and err == MESSAGE
    assert seconds < (5 if work != "time.sleep(60)" else 2)


_MODULE = """
print("running", flush=True)
import time
class Named:
    def __set_name__(self, owner, name):
        time.sleep(60)
class Owner:
    name = Named()
"""


def test_ctrl_c_ends_an_import_at_once(tmp_path):
    """Python makes another error of what it raises there."""
    (tmp_path / "slow_to_import.py").write_text(_MODULE)
    command = _COMMAND.replace('print("running", flush=True)', "").format(
        "os.dup2(os.open(os.devnull, os.O_WRONLY), 2);"
        f"sys.path.append({str(tmp_path)!r}); import slow_to_import"
    )
    code, err, seconds = interrupted("import os\n" + command)
    assert code == 130 and err == MESSAGE
    assert seconds < 2


def test_an_error_after_ctrl_c_is_no_failure():
    work = "try: time.sleep(60)\n    except KeyboardInterrupt: raise ValueError('x')"
    code, err, _ = interrupted(_COMMAND.format(work))
    assert code == 130 and err == MESSAGE
