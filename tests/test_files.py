import os
import time

import pytest

from keras_mixer.files import atomic_replace, atomic_write

# No backend computes here.
pytestmark = pytest.mark.backend_free


def test_the_name_is_given_at_the_end(tmp_path):
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")
    with atomic_write(path) as file:
        file.write(b"new and longer")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new and longer"
    assert list(tmp_path.iterdir()) == [path]


def test_text_is_written_as_asked(tmp_path):
    path = tmp_path / "file.txt"
    with atomic_write(path, "t", newline="", encoding="utf-8") as file:
        file.write("é\r\n")
    assert path.read_bytes() == "é\r\n".encode()


def test_what_fails_leaves_what_was_there(tmp_path):
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), atomic_write(path) as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("write", [atomic_write, atomic_replace])
def test_what_killed_writers_left_is_removed_after_a_day(tmp_path, write):
    path = tmp_path / "model"
    yesterday = time.time() - 2 * 86400
    old, living = tmp_path / ".model.1a2b3c4d.tmp", tmp_path / ".model.5e6f7a8b.tmp"
    for folder in (old, living):
        folder.mkdir()
        (folder / "model").write_bytes(b"half")
    others = [tmp_path / name for name in (".model.settings", ".models.1.tmp")]
    for other in others:
        other.mkdir()
    for each in (old, *others):
        os.utime(each, (yesterday, yesterday))
    path.write_bytes(b"whole")
    with write(path) as new:
        new.write(b"new") if write is atomic_write else new.write_bytes(b"new")
    assert path.read_bytes() == b"new"
    assert sorted(tmp_path.iterdir()) == sorted([path, living, *others])


def test_the_only_copy_is_never_removed(tmp_path):
    """A process that is killed between two renames has the old one in its folder."""
    path, scratch = tmp_path / "model", tmp_path / ".model.1a2b3c4d.tmp"
    (scratch / "replaced").mkdir(parents=True)
    os.utime(scratch, (0, 0))
    with atomic_replace(path) as new:
        new.mkdir()
    assert (scratch / "replaced").is_dir()
