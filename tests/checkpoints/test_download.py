"""Downloads through every fault: a file is whole under its name, or absent."""

import email.utils
import errno
import hashlib
import io
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from official_storage import OfficialStorage

from keras_mixer.checkpoints import download
from keras_mixer.checkpoints.download import fetch

# No backend computes here.
pytestmark = pytest.mark.backend_free

CONTENT = np.random.default_rng(0).bytes(300_000)
NAME = "Mixer-T_8.npz"

# The module alone: a subprocess that imports a backend takes seconds.
SCRIPT = f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location("download", {download.__file__!r})
download = importlib.util.module_from_spec(spec)
spec.loader.exec_module(download)
address, path, size = sys.argv[1:]
"""
FETCH = SCRIPT + "download.fetch(address, path, size=int(size), pause=0.01)"


@pytest.fixture
def storage(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    path = tmp_path / "served" / "mixer_models" / NAME
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT)
    with OfficialStorage(tmp_path / "served") as storage:
        storage.file = path
        storage.address = f"{storage.url}/mixer_models/{NAME}"
        yield storage


@pytest.fixture
def path(tmp_path):
    return tmp_path / "cache" / "weights" / NAME


def get(storage, path, **options):
    options = {"size": len(CONTENT), "timeout": 5, "pause": 0.001, **options}
    return fetch(storage.address, path, **options)


def names(folder):
    return sorted(item.name for item in folder.iterdir()) if folder.exists() else []


def assert_whole(path, content=CONTENT):
    assert path.read_bytes() == content
    assert names(path.parent) == [NAME, f"{NAME}.sha256"]
    digest = hashlib.sha256(content).hexdigest()
    assert path.with_name(f"{NAME}.sha256").read_text() == f"{digest}  {NAME}\n"


def run(script, storage, path, **options):
    return subprocess.Popen(
        [sys.executable, "-c", script, storage.address, str(path), str(len(CONTENT))],
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


# --- the cache --------------------------------------------------------------------


def test_a_file_is_fetched_once(storage, path):
    assert get(storage, path) == path
    assert_whole(path)
    assert get(storage, str(path)) == path
    assert len(storage.log) == 1


def test_offline_a_cached_file_needs_no_request(storage, path, monkeypatch):
    get(storage, path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert get(storage, path) == path
    assert len(storage.log) == 1


@pytest.mark.parametrize("value", ["1", "true", "ON", "Yes"])
def test_offline_nothing_is_asked_for(storage, path, value, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", value)
    with pytest.raises(ConnectionError, match="HF_HUB_OFFLINE forbids") as caught:
        get(storage, path)
    assert str(path) in str(caught.value)
    assert storage.address in str(caught.value)
    assert not storage.log
    assert not path.parent.exists()


@pytest.mark.parametrize("value", ["", "0", "false"])
def test_offline_can_be_switched_off(storage, path, value, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", value)
    assert_whole(get(storage, path))


DAMAGES = {
    "flipped": CONTENT[:1000] + bytes([CONTENT[1000] ^ 1]) + CONTENT[1001:],
    "truncated": CONTENT[:-1],
    "longer": CONTENT + b"\0",
    "empty": b"",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_fetched_once_more(storage, path, damage):
    get(storage, path)
    path.write_bytes(DAMAGES[damage])
    get(storage, path)
    assert_whole(path)
    assert len(storage.log) == 2


@pytest.mark.parametrize("note", [b"", b"\xff\xfe", b"0" * 64])
def test_a_damaged_digest_is_a_damaged_file(storage, path, note):
    get(storage, path)
    path.with_name(f"{NAME}.sha256").write_bytes(note)
    get(storage, path)
    assert_whole(path)
    assert len(storage.log) == 2


def test_a_damaged_file_that_cannot_be_fetched_is_refused(storage, path, monkeypatch):
    get(storage, path)
    path.write_bytes(DAMAGES["flipped"])
    storage.fault("corrupt", 5, times=9)
    with pytest.raises(OSError, match="not the right file"):
        get(storage, path)
    assert len(storage.log) == 3
    assert names(path.parent) == []


def test_a_damaged_file_is_not_used_offline(storage, path, monkeypatch):
    get(storage, path)
    path.write_bytes(DAMAGES["flipped"])
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ConnectionError, match="no intact"):
        get(storage, path)
    path.write_bytes(CONTENT)  # as the message says
    get(storage, path)
    assert_whole(path)


def test_a_file_put_there_by_hand_is_used(storage, path):
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT)
    get(storage, path)
    assert_whole(path)
    assert not storage.log
    # From now on it is watched as any other.
    path.write_bytes(DAMAGES["flipped"])
    get(storage, path)
    assert_whole(path)


def test_a_file_of_another_size_put_there_by_hand_is_not_used(storage, path):
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT[:-11])
    get(storage, path, tolerance=10)
    assert_whole(path)
    assert len(storage.log) == 1


def test_what_killed_processes_left_is_removed_after_a_day(storage, path):
    path.parent.mkdir(parents=True)
    old, young, other = (
        path.with_name(name)
        for name in (f".{NAME}.01234567.tmp", f".{NAME}.89abcdef.tmp", ".other.0.tmp")
    )
    for temporary in (old, young, other):
        temporary.write_bytes(b"part")
    for temporary in (old, other):
        os.utime(temporary, (time.time() - 86500,) * 2)
    get(storage, path)
    assert not old.exists()
    assert young.exists()
    assert other.exists()


# --- the connection ---------------------------------------------------------------


@pytest.mark.parametrize("position", [1, 100_000, len(CONTENT) - 1])
def test_a_dropped_connection_is_resumed(storage, path, position):
    storage.fault("drop", position)
    get(storage, path)
    assert_whole(path)
    tag = hashlib.md5(CONTENT).hexdigest()
    first, second = storage.log
    assert first["range"] is None
    assert second["range"] == f"bytes={position}-"
    assert second["if_range"] == f'"{tag}"'
    assert second["status"] == 206


@pytest.mark.parametrize("position", [0, 1000])
def test_a_connection_dropped_for_ever_is_given_up(storage, path, position):
    storage.fault("drop", position, times=99)
    with pytest.raises(ConnectionError, match="gave up after 4 failures") as caught:
        get(storage, path)
    assert storage.address in str(caught.value)
    assert f"put it at {path}" in str(caught.value)
    assert len(storage.log) == 4
    assert names(path.parent) == []


def test_a_download_that_gets_on_may_break_often(storage, path):
    content = CONTENT * 20  # 6 MB
    storage.file.write_bytes(content)
    # Not "drop": its reset can take bytes along that a slow machine has not read yet.
    storage.fault("hang_up", 1_100_000, times=9)
    get(storage, path, size=len(content), tries=2)
    assert_whole(path, content)
    assert len(storage.log) == 6


def test_a_server_that_starts_over_does_not_count_as_getting_on(storage, path):
    content = CONTENT * 20
    storage.file.write_bytes(content)
    storage.fault("drop_untagged", 2_000_000, times=50)
    with pytest.raises(ConnectionError, match="gave up after 4 failures"):
        get(storage, path, size=len(content))
    assert len(storage.log) == 4


def test_a_file_that_changes_meanwhile_is_not_spliced(storage, path, monkeypatch):
    changed = CONTENT[::-1]
    monkeypatch.setattr(
        download.time, "sleep", lambda _: storage.file.write_bytes(changed)
    )
    storage.fault("drop", 100_000)
    get(storage, path)
    monkeypatch.undo()
    assert_whole(path, changed)
    assert storage.log[1]["status"] == 200


def test_a_server_may_ignore_ranges(storage, path):
    storage.fault("drop", 100_000)
    storage.fault("ignore_range")
    get(storage, path)
    assert_whole(path)
    assert [entry["status"] for entry in storage.log] == [200, 200]


def test_another_part_than_asked_for_is_not_used(storage, path):
    storage.fault("drop", 100_000)
    storage.fault("wrong_range")
    get(storage, path)
    assert_whole(path)
    assert [entry["status"] for entry in storage.log] == [200, 206, 200]


def test_without_a_tag_the_download_starts_over(storage, path):
    storage.fault("drop_untagged", 100_000)
    get(storage, path)
    assert_whole(path)
    assert [entry["range"] for entry in storage.log] == [None, None]


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_failing_server_is_asked_again(storage, path, status):
    storage.fault("status", status, times=3)
    get(storage, path)
    assert_whole(path)
    assert len(storage.log) == 4


@pytest.mark.parametrize("status", [429, 503])
def test_a_server_that_fails_for_ever_is_given_up(storage, path, status):
    storage.fault("status", status, times=99)
    with pytest.raises(ConnectionError, match=f"answered {status} .*4 failures"):
        get(storage, path)
    assert len(storage.log) == 4
    assert names(path.parent) == []


@pytest.mark.parametrize(
    "status, error",
    [
        (400, ConnectionError),
        (401, PermissionError),
        (403, PermissionError),
        (404, FileNotFoundError),
        (410, FileNotFoundError),
    ],
)
def test_a_refusal_is_final(storage, path, status, error):
    storage.fault("status", status)
    with pytest.raises(error, match=f"the server answered {status} ") as caught:
        get(storage, path)
    assert storage.address in str(caught.value)
    assert f"put it at {path}" in str(caught.value)
    assert len(storage.log) == 1
    assert names(path.parent) == []


def test_a_file_that_is_not_there_is_named(storage, path):
    storage.file.unlink()
    with pytest.raises(FileNotFoundError, match=f"{storage.address}.* 404 "):
        get(storage, path)


def test_a_silent_server_is_asked_again(storage, path):
    storage.fault("stall", 1)
    get(storage, path, timeout=0.2)
    assert_whole(path)
    assert len(storage.log) == 2


def test_a_server_that_stays_silent_is_given_up(storage, path):
    storage.fault("stall", 1, times=9)
    with pytest.raises(ConnectionError, match="timed out; gave up after 2 failures"):
        get(storage, path, timeout=0.1, tries=2)
    assert names(path.parent) == []


def test_a_slow_server_is_not_a_silent_one(storage, path):
    storage.fault("slow", 600_000)
    get(storage, path, timeout=0.3)
    assert_whole(path)
    assert len(storage.log) == 1


def test_without_a_server_the_file_can_be_put_by_hand(storage, path):
    storage.__exit__()
    with pytest.raises(ConnectionError, match="refused; gave up|refused.*gave up"):
        get(storage, path)
    path.write_bytes(CONTENT)
    assert_whole(get(storage, path))


def test_waits_grow_and_are_bounded(storage, path, monkeypatch):
    waits = []
    monkeypatch.setattr(download.time, "sleep", waits.append)
    storage.fault("status", 503, times=99)
    with pytest.raises(ConnectionError):
        get(storage, path, pause=1)
    assert len(waits) == 3
    for wait, most in zip(waits, (1, 2, 4), strict=True):
        assert most / 2 <= wait <= most


def test_proxies_of_the_environment_are_used(storage, path, monkeypatch):
    monkeypatch.delenv("no_proxy")
    monkeypatch.setenv("http_proxy", storage.url)
    address = f"http://127.0.0.1:9/mixer_models/{NAME}"
    with pytest.raises(FileNotFoundError):
        fetch(address, path, size=len(CONTENT))
    assert [entry["path"] for entry in storage.log] == [address]


@pytest.mark.parametrize("status, headers", [(206, {}), (416, {}), (302, {})])
def test_a_strange_first_answer_is_asked_again(storage, path, status, headers):
    storage.fault("status", status, times=2)
    get(storage, path)
    assert_whole(path)
    assert len(storage.log) == 3


def test_a_part_that_is_no_longer_there_starts_over(storage, path):
    storage.fault("drop", 100_000)
    storage.fault("status", 416)
    get(storage, path)
    assert_whole(path)
    assert [entry["range"] for entry in storage.log] == [None, "bytes=100000-", None]


@pytest.mark.parametrize(
    "location", ["http://[::1", "http://127.0.0.1:port/", "https://[bad]/\x7f"]
)
def test_a_redirect_that_cannot_be_read_is_asked_again(storage, path, location):
    storage.fault("redirect", location)
    get(storage, path)
    assert_whole(path)
    storage.fault("redirect", location, times=9)
    path.unlink()
    with pytest.raises(ConnectionError, match="cannot be read|nonnumeric"):
        get(storage, path)


@pytest.mark.parametrize(
    "text, seconds",
    [
        (None, 0),
        ("7", 7),
        (" 7 ", 7),
        ("99999999999999999999999", 60),
        ("Fri, 31 Dec 1999 23:59:59 GMT", 0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 60),
        ("-5", 0),
        ("soon", 0),
        ("\u0667", 0),
    ],
)
def test_a_server_may_say_how_long_to_wait(text, seconds):
    headers = {} if text is None else {"Retry-After": text}
    assert download.retry_after(headers) == seconds


def test_a_date_to_wait_for_is_counted_from_now():
    date = email.utils.formatdate(time.time() + 30, usegmt=True)
    assert 28 <= download.retry_after({"Retry-After": date}) <= 30


def test_the_server_is_given_the_time_it_asks_for(storage, path, monkeypatch):
    waits = []
    monkeypatch.setattr(download.time, "sleep", waits.append)
    monkeypatch.setattr(download, "retry_after", lambda headers: 17.0)
    storage.fault("status", 503)
    get(storage, path)
    assert waits == [17.0]


# --- the check of the content ------------------------------------------------------


def refuse_flipped(path):
    if path.read_bytes() != CONTENT:
        raise ValueError("a bit is wrong")


def test_without_a_hash_a_wrong_bit_is_found_by_reading(storage, path):
    storage.fault("corrupt_unhashed", 5)
    get(storage, path, check=refuse_flipped)
    assert_whole(path)
    assert len(storage.log) == 2


def test_what_cannot_be_read_is_never_intact(storage, path):
    storage.fault("corrupt_unhashed", 5, times=2)
    with pytest.raises(OSError, match=r"cannot be read \(a bit is wrong\)"):
        get(storage, path, check=refuse_flipped)
    assert names(path.parent) == []


def test_a_file_put_there_by_hand_is_read_before_it_is_used(storage, path):
    path.parent.mkdir(parents=True)
    path.write_bytes(DAMAGES["flipped"])
    get(storage, path, check=refuse_flipped)
    assert_whole(path)
    assert len(storage.log) == 1


def test_a_damaged_file_that_cannot_be_deleted_is_named(storage, path, monkeypatch):
    get(storage, path)
    path.write_bytes(DAMAGES["flipped"])

    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(type(path), "unlink", refuse)
    with pytest.raises(OSError, match="Delete it, or set KERAS_HOME") as caught:
        get(storage, path)
    assert str(path) in str(caught.value)


def test_a_pipe_under_the_name_is_refused(storage, path):
    path.parent.mkdir(parents=True)
    os.mkfifo(path)
    with pytest.raises(OSError, match="must be a regular file"):
        get(storage, path)


# --- the content ------------------------------------------------------------------


@pytest.mark.parametrize("position", [0, 150_000, len(CONTENT) - 1])
def test_a_wrong_bit_is_found(storage, path, position):
    storage.fault("corrupt", position)
    get(storage, path)
    assert_whole(path)
    assert len(storage.log) == 2


def test_a_wrong_bit_is_found_in_a_resumed_part(storage, path):
    storage.fault("drop", 100_000)
    storage.fault("corrupt", 50_000)
    get(storage, path)
    assert_whole(path)
    assert [entry["status"] for entry in storage.log] == [200, 206, 200]


def test_wrong_bits_are_not_fetched_for_ever(storage, path):
    storage.fault("corrupt", 7, times=9)
    with pytest.raises(OSError, match="not the right file: its MD5 is ") as caught:
        get(storage, path)
    assert storage.address in str(caught.value)
    assert len(storage.log) == 2
    assert names(path.parent) == []


def test_a_short_file_is_refused_before_it_is_received(storage, path):
    storage.fault("truncate", 200_000, times=9)
    with pytest.raises(OSError, match="announces 200000 bytes where 300000 are right"):
        get(storage, path, tolerance=99_999)
    assert len(storage.log) == 2
    assert names(path.parent) == []


def test_a_file_that_is_short_once_is_fetched_again(storage, path):
    storage.fault("truncate", 200_000)
    get(storage, path)
    assert_whole(path)


def test_the_storage_s_md5_decides_within_the_tolerance(storage, path):
    get(storage, path, size=len(CONTENT) + 10, tolerance=10)
    assert_whole(path)
    path.unlink()
    storage.fault("truncate", len(CONTENT) - 10, times=9)
    with pytest.raises(OSError, match="MD5"):
        get(storage, path, tolerance=10)


def test_fewer_bytes_than_announced_are_not_a_file(storage, path):
    storage.fault("announce", 10, times=99)
    with pytest.raises(ConnectionError, match="broke after 300000 of 300010 bytes"):
        get(storage, path, tolerance=10)
    assert names(path.parent) == []


def test_a_length_need_not_be_announced(storage, path):
    storage.fault("chunked", times=9)
    get(storage, path)
    assert_whole(path)


def test_without_a_length_the_size_is_compared_at_the_end(storage, path):
    storage.fault("chunked", times=9)
    with pytest.raises(ConnectionError, match="broke after 300000 of 300010 bytes"):
        get(storage, path, size=len(CONTENT) + 10)
    with pytest.raises(OSError, match="more than its 299990 bytes arrive"):
        get(storage, path, size=len(CONTENT) - 10)
    assert names(path.parent) == []


def test_storage_may_know_no_md5(storage, path):
    storage.fault("no_hash")
    get(storage, path)
    assert_whole(path)


@pytest.mark.parametrize("lines", [["crc32c=AA==", "md5=X/Y="], ["crc32c=A,md5=X/Y="]])
def test_the_md5_may_stand_beside_another_hash(lines):
    headers = download.urllib.request.http.client.HTTPMessage()
    for line in lines:
        headers["x-goog-hash"] = line
    assert download._stored_md5(headers) == "X/Y="


# --- security ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    [
        "http://storage.googleapis.com/mixer_models/x.npz",
        "http://127.0.0.1.example.org/x.npz",
        "ftp://127.0.0.1/x.npz",
        "file:///etc/passwd",
        "/etc/passwd",
    ],
)
def test_an_insecure_address_is_refused(storage, path, address):
    with pytest.raises(ValueError, match="`address` must be an https address. Receiv"):
        fetch(address, path, size=1)
    storage.fault("redirect", address)
    if "//" in address:
        with pytest.raises((ValueError, ConnectionError)):
            get(storage, path)
    assert names(path.parent) == []


def test_a_secure_redirect_is_followed(storage, path):
    storage.fault("redirect", storage.address)
    get(storage, path)
    assert_whole(path)


# --- the disk ---------------------------------------------------------------------


def test_a_full_disk_is_noticed_before(storage, path, monkeypatch):
    usage = download.shutil.disk_usage("/")._replace(free=len(CONTENT) - 1)
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(
        OSError, match="300000 bytes do not fit. .*KERAS_HOME"
    ) as caught:
        get(storage, path)
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename == str(path)
    assert names(path.parent) == []


def test_a_disk_that_fills_up_is_reported(storage, path):
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (99999,) * 2)\n"
    process = run(limit + FETCH, storage, path)
    assert (
        "OSError: [Errno 27] Cannot write a download: File too"
        in (process.communicate(timeout=60)[1])
    )
    assert process.returncode == 1
    assert names(path.parent) == []


def test_a_folder_that_cannot_be_made_is_named(storage, path):
    path.parent.parent.write_text("a file where a folder should be")
    with pytest.raises(OSError, match="KERAS_HOME") as caught:
        get(storage, path)
    assert caught.value.filename == str(path)
    assert not storage.log


# --- processes --------------------------------------------------------------------


def test_a_download_that_ends_just_before_the_last_step_is_made_again(
    storage, path, monkeypatch
):
    replace = os.replace

    def interrupt(source, target):
        if target == path:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(download.os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        get(storage, path)
    assert names(path.parent) == [f"{NAME}.sha256"]
    monkeypatch.setattr(download.os, "replace", replace)
    get(storage, path)
    assert_whole(path)


@pytest.mark.parametrize("step", ["append", "check"])
def test_an_interrupted_download_leaves_nothing(storage, path, step, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(download._Part, step, interrupt)
    with pytest.raises(KeyboardInterrupt):
        get(storage, path)
    assert names(path.parent) == []


def test_a_killed_download_is_never_taken_for_a_file(storage, path):
    moments = random.Random(0)
    for _ in range(int(os.environ.get("KERAS_MIXER_KILLS", "5"))):
        storage.fault("slow", 1_500_000)  # 0.2 s
        asked = len(storage.log)
        process = run(FETCH, storage, path)
        while len(storage.log) == asked and process.poll() is None:
            time.sleep(0.005)
        time.sleep(moments.uniform(0, 0.25))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        if path.exists():
            assert path.read_bytes() == CONTENT
            path.unlink()
            path.with_name(f"{NAME}.sha256").unlink()
    storage._faults.clear()
    get(storage, path)
    assert path.read_bytes() == CONTENT
    assert any(name.endswith(".tmp") for name in names(path.parent))


def test_two_processes_may_fetch_at_once(storage, path):
    storage.fault("slow", 600_000, times=2)
    processes = [run(FETCH, storage, path) for _ in range(2)]
    for process in processes:
        assert process.communicate(timeout=60)[1] == ""
        assert process.returncode == 0
    assert_whole(path)
    assert len(storage.log) == 2


# --- the progress bar -------------------------------------------------------------


class Stream(io.StringIO):
    def __init__(self, terminal):
        super().__init__()
        self.isatty = lambda: terminal


def test_progress_is_shown_on_a_terminal(storage, path, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Stream(True))
    storage.fault("drop", 100_000)
    get(storage, path)
    assert NAME in sys.stderr.getvalue()
    assert "100%" in sys.stderr.getvalue()
    assert "300k/300k" in sys.stderr.getvalue()


def test_progress_is_not_written_to_files(storage, path, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Stream(False))
    get(storage, path)
    assert sys.stderr.getvalue() == ""
