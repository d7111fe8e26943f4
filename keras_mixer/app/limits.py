"""What the demo takes at most, so that nobody can fill or block the machine."""

from dataclasses import dataclass, fields

from keras_mixer.checks import check_dim

MEBIBYTE = 2**20


@dataclass(frozen=True)
class Limits:
    """Bounds of one request, and of all of them together. All are positive integers.

    Attributes:
        pictures: Pictures of one request.
        picture_bytes: Bytes of one file.
        picture_pixels: Pixels of one picture: a small file can hold a huge picture.
        request_bytes: Bytes of one request, all its files together.
        stored_bytes: Bytes of all uploads that are kept at the same time.
        kept_seconds: How long an upload is kept.
        seconds: How long one request may take, to arrive and to be computed.
        uploads: Requests with files that arrive at the same time.
        queue: Requests that wait for the model.

    Raises:
        ValueError: If one of them is not a positive integer.
    """

    pictures: int = 64
    picture_bytes: int = 20 * MEBIBYTE
    picture_pixels: int = 50_000_000
    request_bytes: int = 200 * MEBIBYTE
    stored_bytes: int = 1024 * MEBIBYTE
    kept_seconds: int = 3600
    seconds: int = 120
    uploads: int = 16
    queue: int = 32

    def __post_init__(self) -> None:
        for field in fields(self):
            check_dim(field.name, getattr(self, field.name))
