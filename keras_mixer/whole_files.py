"""Files that are whole under their name, or absent, whenever the writer is stopped."""

import contextlib
import os
import secrets


@contextlib.contextmanager
def writing_whole(path, mode="b", **options):
    """Give a new file to write, which takes the name `path` once it is on disk.

    Args:
        path: A `Path`; a file that is there is replaced, if nothing fails.
        mode: `"b"` for bytes, `"t"` for text.
        **options: Passed to `open`.

    Raises:
        OSError: If the file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, f"x{mode}", **options) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
