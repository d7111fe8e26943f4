import errno
import os
import subprocess
import sys

import pytest

from keras_mixer.training.run_folder import disk_errors_name, sole_writer

_HOLDER = """
import sys, time
from pathlib import Path
from keras_mixer.training.run_folder import sole_writer
with sole_writer(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.mark.backend_free
def test_a_folder_has_one_writer_and_a_killed_one_leaves_no_lock(tmp_path):
    folder = tmp_path / "run"
    with subprocess.Popen(
        [sys.executable, "-c", _HOLDER, folder], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(FileExistsError, match="Another run is writing") as caught:
            with sole_writer(folder):
                pytest.fail("two writers")
        assert str(folder) in str(caught.value)
        holder.kill()
        holder.wait()
    with sole_writer(folder):  # its file is there, its lock is not
        with pytest.raises(FileExistsError):  # in the same process, too
            with sole_writer(folder):
                pytest.fail("two writers")
    with sole_writer(folder):
        pass


@pytest.mark.backend_free
def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file/run"):
        with sole_writer(tmp_path / "file" / "run"):
            pass


@pytest.mark.backend_free
def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch):
    def acquire(self, *args, **kwargs):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("filelock.BaseFileLock.acquire", acquire)
    with pytest.warns(UserWarning, match="has no locks"):
        with sole_writer(tmp_path):
            pass


@pytest.mark.backend_free
def test_errors_of_the_disk_name_the_path(tmp_path):
    path = tmp_path / "log.csv"
    with pytest.raises(OSError, match=r"No space left on device: '.*log\.csv'"):
        with disk_errors_name(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(OSError, match=r"it is full: '.*log\.csv'"):
        with disk_errors_name(path):
            raise OSError("it is full")
    with pytest.raises(FileNotFoundError) as caught:
        with disk_errors_name(path):
            path.read_text()
    assert str(caught.value).count("log.csv") == 1
