"""The published weights: one frozen record per file, and where the file is found.

A record says all that the file itself does not: which model it is for, how its images
are prepared, which form of GELU it was trained with, where it comes from and what is
known of its accuracy.
"""

import contextlib
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from keras_mixer.checkpoints import hub_files
from keras_mixer.checkpoints.download import fetch, forget
from keras_mixer.checkpoints.hdf5_files import trust
from keras_mixer.checkpoints.published import PUBLISHED
from keras_mixer.checkpoints.weight_files import check_file, read_shapes
from keras_mixer.labels import CIFAR10_LABELS
from keras_mixer.preprocessing import Preprocessing

# Listed as gs://mixer_models in `vit_jax.ipynb` of google-research/vision_transformer.
OFFICIAL_ADDRESS = "https://storage.googleapis.com/mixer_models"

NOT_PUBLISHED = "not published"

_WEIGHTS_NAME = "model.weights.h5"
_MAX_BYTES = 2**30  # nearly four times the larger file of MIIL

# The listing gives sizes to 0.01 MiB. The bytes in the records are what `np.savez`
# makes of the official names and shapes (their sum is that of the listing); they are
# computed, not seen, so what the storage says of itself counts where both agree so far.
_SIZE_TOLERANCE = 2**20 // 100


class HubFile(NamedTuple):
    """One file of a Hub repository: its name, SHA-256 and size in bytes."""

    name: str
    sha256: str
    size: int


@dataclass(frozen=True)
class Checkpoint:
    """One published file of weights.

    Attributes:
        name: What `weights=` takes, for example `"imagenet21k"`.
        variant: The model it belongs to, for example `"B/16"`.
        origin: Who trained it on what.
        address: Where its authors publish it: an https address, or
            `hf://owner/name/file` on the Hub. `None` for an embedded one.
        size: Expected size of the file at `address` in bytes, within 0.01 MiB; `None`
            where the Hub knows it.
        num_classes: Width of its head.
        image_size: Edge of the square images it was trained on, in pixels.
        preprocessing: How its images are prepared.
        approximate_gelu: Tanh form of GELU (`True`) or the exact one.
        licence: SPDX identifier.
        accuracy: Published top-1 accuracy in percent with its source, or
            "not published".
        labels: One name per class, or `None` where `decode_predictions` knows them by
            their number, or nobody does (MIIL's 11221).
        embedded: Folder of the package that holds it.
        hub_repository: Our repository on the Hub, `None` until published.
        hub_commit: The pinned commit of it, 40 hexadecimal digits.
        hub_files: The files at that commit.
    """

    name: str
    variant: str
    origin: str
    address: str | None
    size: int | None
    num_classes: int
    image_size: int
    preprocessing: Preprocessing
    approximate_gelu: bool
    licence: str
    accuracy: str = NOT_PUBLISHED
    labels: tuple[str, ...] | None = None
    embedded: str | None = None
    hub_repository: str | None = None
    hub_commit: str | None = None
    hub_files: tuple[HubFile, ...] = ()


# The evaluation of the imagenet1k files in google-research/big_vision. For sam and gsam
# nobody states it; the range is implied by the configuration of GSAM there and by the
# accuracy of the Vision Transformers of the same publication.
_GOOGLE_IMAGES = Preprocessing(
    value_range=(-1, 1), transform="resmall_crop", interpolation="area"
)
_MIIL_IMAGES = Preprocessing(
    value_range=(0, 1),
    transform="resmall_crop",
    interpolation="bilinear",
    library="pillow",  # as in timm, whose accuracies these are
)

_OFFICIAL_ORIGINS = {
    "imagenet1k": "Google, trained from scratch on ImageNet-1k",
    "imagenet21k": "Google, trained from scratch on ImageNet-21k",
    "sam": "Google, trained from scratch on ImageNet-1k with SAM (arXiv:2106.01548)",
    "gsam": "Google, trained from scratch on ImageNet-1k with GSAM (arXiv:2203.08065)",
}


def _official(
    name: str,
    variant: str,
    size: int,
    accuracy: str = NOT_PUBLISHED,
    num_classes: int = 1000,
) -> Checkpoint:
    return Checkpoint(
        name=name,
        variant=variant,
        origin=_OFFICIAL_ORIGINS[name],
        address=f"{OFFICIAL_ADDRESS}/{name}/Mixer-{variant.replace('/', '_')}.npz",
        size=size,
        num_classes=num_classes,
        image_size=224,
        preprocessing=_GOOGLE_IMAGES,
        approximate_gelu=True,
        licence="Apache-2.0",  # of google-research/vision_transformer
        accuracy=accuracy,
    )


def _miil(
    name: str, repository: str, num_classes: int, origin: str, accuracy: str
) -> Checkpoint:
    return Checkpoint(
        name=name,
        variant="B/16",
        origin=origin,
        address=f"hf://{repository}/model.safetensors",
        size=None,
        num_classes=num_classes,
        image_size=224,
        preprocessing=_MIIL_IMAGES,
        approximate_gelu=False,  # trained in PyTorch
        licence="Apache-2.0",  # as timm states it
        accuracy=accuracy,
    )


# True names. What timm calls `goog_in21k_ft_in1k` are the imagenet1k files; no Mixer of
# Google's that was fine-tuned from ImageNet-21k is public, so the paper's 80.64 (B/16)
# and 82.89 (L/16) belong to none of these.
_RECORDS = (
    _official("imagenet1k", "B/16", 239_564_448, "76.44 (paper, table 3)"),
    _official("imagenet1k", "L/16", 832_868_560, "71.76 (paper, table 3)"),
    _official("imagenet21k", "B/16", 303_677_516, num_classes=21843),
    _official("imagenet21k", "L/16", 918_324_860, num_classes=21843),
    _official("sam", "B/16", 239_567_448, "77.4 (arXiv:2106.01548)"),
    _official("sam", "B/32", 241_219_272),
    _official("gsam", "B/16", 239_567_448),
    _official("gsam", "B/32", 241_219_272),
    _official("gsam", "S/16", 74_143_928),
    _official("gsam", "S/32", 76_449_368),
    _official("gsam", "S/8", 82_616_888),
    _miil(
        "miil_imagenet21k",
        "timm/mixer_b16_224.miil_in21k",
        11221,
        "Alibaba MIIL, trained on ImageNet-21K-P",
        "76.3 semantic, on ImageNet-21K-P (model zoo of Alibaba-MIIL/ImageNet21K)",
    ),
    _miil(
        "miil_imagenet1k",
        "timm/mixer_b16_224.miil_in21k_ft_in1k",
        1000,
        "Alibaba MIIL, trained on ImageNet-21K-P, fine-tuned on ImageNet-1k",
        "82.314 (results of timm)",
    ),
    Checkpoint(
        name="cifar10",
        variant="Ti/4",
        origin="keras_mixer, trained from scratch on CIFAR-10",
        address=None,
        size=None,
        num_classes=10,
        image_size=32,
        preprocessing=Preprocessing(transform="resize"),
        approximate_gelu=True,
        licence="Apache-2.0",
        accuracy="85.99 on CIFAR-10 (card in weights/mixer-ti4-cifar10)",
        labels=CIFAR10_LABELS,
        embedded="mixer-ti4-cifar10",
    ),
)


def _with_repository(checkpoint: Checkpoint) -> Checkpoint:
    """Return the record with our repository on the Hub, if it is published."""
    key = (checkpoint.variant, checkpoint.name)
    repository, commit, files = PUBLISHED.get(key, (None, None, ()))
    return replace(
        checkpoint,
        hub_repository=repository,
        hub_commit=commit,
        hub_files=tuple(HubFile(*file) for file in files),
    )


_CHECKPOINTS = tuple(map(_with_repository, _RECORDS))


def list_checkpoints(variant: str | None = None) -> tuple[Checkpoint, ...]:
    """Return the records of all published checkpoints, or of one variant (`"B/16"`)."""
    return tuple(
        checkpoint
        for checkpoint in _CHECKPOINTS
        if variant in (None, checkpoint.variant)
    )


def find_checkpoint(variant: str, name: object) -> Checkpoint:
    """Return the record of a checkpoint.

    Raises:
        ValueError: If the variant has no checkpoint of that name; the message lists
            those it has.
    """
    names = [checkpoint.name for checkpoint in list_checkpoints(variant)]
    if name in names:
        return list_checkpoints(variant)[names.index(name)]
    elsewhere = [c.variant for c in list_checkpoints() if c.name == name]
    raise ValueError(
        f"Mixer-{variant} has no checkpoint of that name. Received: weights={name!r}. "
        f"It has {', '.join(map(repr, names)) if names else 'none'}"
        + (f"; {name!r} exists for {', '.join(elsewhere)}" if elsewhere else "")
        + ". `weights` may also be the path of an official .npz, a timm .safetensors "
        "or a .weights.h5 of this package."
    )


def weights_path(checkpoint: Checkpoint) -> Path:
    """Return the path of the checkpoint's weights on this machine.

    An embedded one lies in the package. Any other is downloaded once: from our Hub
    repository where the record pins a commit of it, otherwise from where its authors
    publish it. Files of the Hub go to the Hub's own cache, others to
    `$KERAS_HOME/keras_mixer/weights` (`~/.keras` by default), where they may also be
    put by hand.

    Raises:
        ConnectionError: If the server cannot be reached, fails again and again, or is
            not to be asked because `HF_HUB_OFFLINE` is set.
        FileNotFoundError: If there is no such file, or the package was installed
            without it.
        OSError: If what arrives is damaged, or cannot be written.
        PermissionError: If the server refuses access.
        ValueError: If the file is far too large.
    """
    if checkpoint.embedded:
        path = _embedded_path(checkpoint.embedded)
        trust(path)
        return path
    if checkpoint.hub_repository and checkpoint.hub_commit:
        (file,) = (f for f in checkpoint.hub_files if f.name == _WEIGHTS_NAME)
        path = hub_files.download_file(
            checkpoint.hub_repository,
            file.name,
            checkpoint.hub_commit,
            sha256=file.sha256,
            size=file.size,
        )
        trust(path)  # the SHA-256 is ours
        return path
    address = checkpoint.address or ""
    path = _home_path(address)
    if address.startswith("hf://"):
        return _from_hub(address, path.with_name(f"{path.name}.seen"))
    return _from_storage(address, path, checkpoint.size or 0)


def _from_storage(address: str, path: Path, size: int) -> Path:
    """Return the path of an official file that can be read."""

    def check(path: Path) -> None:
        check_file(path, ".npz")

    def get() -> Path:
        return fetch(address, path, size=size, tolerance=_SIZE_TOLERANCE, check=check)

    get()
    try:
        read_shapes(path)
    except ValueError:
        forget(path)  # whatever its digest says, nobody can use it
        get()
    return path


def is_cached(checkpoint: Checkpoint) -> bool:
    """Whether the weights lie on this machine where `weights_path` will look first."""
    if checkpoint.embedded:
        return True
    if checkpoint.hub_repository and checkpoint.hub_commit:
        return hub_files.is_cached(
            checkpoint.hub_repository, _WEIGHTS_NAME, checkpoint.hub_commit
        )
    return _home_path(checkpoint.address or "").is_file()


def _home_path(address: str) -> Path:
    home = Path(os.environ.get("KERAS_HOME") or "~/.keras").expanduser()
    *_, folder, name = address.split("/")
    return home / "keras_mixer" / "weights" / folder / name


def _from_hub(address: str, note: Path) -> Path:
    """Return the path of a file on the Hub as it was when first asked for.

    Its record has no commit and no SHA-256. The Hub states them once; `note` keeps
    them, so that from then on the file cannot change and, once cached, needs no
    request.
    """
    repository, _, name = address.removeprefix("hf://").rpartition("/")

    def download(noted: str) -> Path:
        commit, sha256 = noted.split()
        return hub_files.download_file(
            repository,
            name,
            commit,
            sha256=None if sha256 == _NO_HASH else sha256,
            max_size=_MAX_BYTES,
        )

    noted = note.read_text(errors="replace") if note.is_file() else ""
    if _NOTE.fullmatch(noted):
        try:
            return download(noted)
        except hub_files.OtherContentError:
            # The note itself may be damaged: the Hub knows what is right.
            right = _ask_hub(repository, name, noted.split()[0])
            if right == noted:
                raise
            noted = right
    else:
        noted = _ask_hub(repository, name, "main")
    with contextlib.suppress(OSError):  # a cache may be read-only
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(noted)
    return download(noted)


_NO_HASH = "none"
_NOTE = re.compile(f"[0-9a-f]{{40}} ([0-9a-f]{{64}}|{_NO_HASH})")


def _ask_hub(repository: str, name: str, revision: str) -> str:
    """Return the commit of a revision and the SHA-256 of a large file in it."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    commit = hub_files.resolve_revision(repository, revision)
    url = hf_hub_url(repository, name, revision=commit)
    etag = hub_files.with_retries(lambda: get_hf_file_metadata(url), url).etag
    # The tag of a large file is its SHA-256, where the storage says it.
    sha256 = etag if re.fullmatch("[0-9a-f]{64}", etag or "") else _NO_HASH
    return f"{commit} {sha256}"


def _embedded_path(name: str) -> Path:
    package = Path(__file__).parents[1]
    # In the wheel the folder lies inside the package, in a checkout beside it.
    for folder in (package / "embedded", package.parent / "weights"):
        path = folder / name / _WEIGHTS_NAME
        if path.is_file():
            return path
    raise FileNotFoundError(
        f"The embedded checkpoint {name} is missing from this installation. Install "
        "keras-mixer again."
    )
