import pytest

from keras_mixer.files import atomic_write

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
