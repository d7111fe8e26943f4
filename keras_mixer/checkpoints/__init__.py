"""The published weights: what there is, where it lies, how it is fetched and read.

Arrays come out of here, never a model: building one is the task of
`keras_mixer.models`, publishing one that of `keras_mixer.hub`.
"""

from keras_mixer.checkpoints.archives import open_archive
from keras_mixer.checkpoints.convert import (
    check_finite,
    check_shapes,
    describe,
    describe_shapes,
    shapes_of,
)
from keras_mixer.checkpoints.hdf5_files import look_at, trust
from keras_mixer.checkpoints.hub_files import (
    download_file,
    git_sha1,
    parse_address,
    with_retries,
)
from keras_mixer.checkpoints.locate import (
    Fetch,
    in_folder,
    locate,
    open_repository,
    read_published,
)
from keras_mixer.checkpoints.manifest import (
    CARD,
    CHECKSUMS,
    CONFIG,
    LABELS,
    MAX_CONFIG_SIZE,
    MAX_PARAMETERS,
    METADATA,
    WEIGHTS,
    activations,
    make_entry,
)
from keras_mixer.checkpoints.records import (
    Checkpoint,
    HubFile,
    find_checkpoint,
    is_cached,
    list_checkpoints,
    weights_path,
)
from keras_mixer.checkpoints.timm_repository import CROP_MODES, TIMM_WEIGHTS
from keras_mixer.checkpoints.timm_weights import write_timm
from keras_mixer.checkpoints.weight_files import (
    WEIGHT_ENDINGS,
    read_shapes,
    read_weights,
    write_official,
)

__all__ = [
    "CARD",
    "CHECKSUMS",
    "CONFIG",
    "CROP_MODES",
    "Checkpoint",
    "Fetch",
    "HubFile",
    "LABELS",
    "MAX_CONFIG_SIZE",
    "MAX_PARAMETERS",
    "METADATA",
    "TIMM_WEIGHTS",
    "WEIGHTS",
    "WEIGHT_ENDINGS",
    "activations",
    "check_finite",
    "check_shapes",
    "describe",
    "describe_shapes",
    "download_file",
    "find_checkpoint",
    "git_sha1",
    "in_folder",
    "is_cached",
    "list_checkpoints",
    "locate",
    "look_at",
    "make_entry",
    "open_archive",
    "open_repository",
    "parse_address",
    "read_published",
    "read_shapes",
    "read_weights",
    "shapes_of",
    "trust",
    "weights_path",
    "with_retries",
    "write_official",
    "write_timm",
]
