"""Any member of the family by its name, with the weights of a checkpoint or a file."""

import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import keras

from keras_mixer.checkpoints import (
    WEIGHT_ENDINGS,
    describe_shapes,
    find_checkpoint,
    is_cached,
    list_checkpoints,
    locate,
    read_shapes,
    weights_path,
)
from keras_mixer.checks import check_dim, check_image_shape, check_rate
from keras_mixer.layers import zero_kernels
from keras_mixer.models.mixer import (
    MLPMixer,
    check_labels,
    load_weights,
    mlp_mixer,
    name_head,
)
from keras_mixer.models.resize import resize
from keras_mixer.preprocessing import Preprocessing
from keras_mixer.variants import num_patches, parse_variant


def create(
    variant: str,
    weights: str | Path | None = None,
    *,
    input_shape: tuple[int, int, int] | None = None,
    num_classes: int | None = None,
    classifier_activation: Any = "softmax",
    include_preprocessing: bool = True,
    dropout_rate: float = 0.0,
    stochastic_depth_rate: float = 0.0,
    name: str | None = None,
    dtype: Any = None,
    labels: Sequence[str] | None = None,
) -> MLPMixer:
    """Build a member of the family by its name; `create("B/16")` is `MixerB16()`.

    Args:
        variant: Size letter, slash and patch size, such as `"B/16"`.
        weights: `None` for random weights, the name of a checkpoint (see
            `list_models(pretrained=True)`), `"hf://owner/name[@revision]"`, or the path
            of an official `.npz`, a timm `.safetensors` or a `.weights.h5` of this
            package. On the Hub or in a folder: a model of this package or of timm.
        input_shape: `(height, width, channels)` of the images, channels last; `None`
            for the size of the checkpoints, RGB. At another size than the weights' own,
            the token-mixing MLPs are adapted as `keras_mixer.resize` does.
        num_classes: Number of classes. `None` keeps the head of the weights (1000
            classes without weights); 0 gives pooled features (`pre_logits`); any other
            number than the weights' own gives a new zero head.
        classifier_activation: Activation of the head; `None` for logits.
        include_preprocessing: Whether the graph normalises: the model then takes pixels
            in [0, 255]. `False`: the input is already normalised.
        dropout_rate: Dropout inside the MLPs, in [0, 1).
        stochastic_depth_rate: Probability to drop a branch of the last block, in
            [0, 1); it grows linearly from 0 at the first block.
        name: Name of the model; `None` for that of the variant, as in "mixer_b16".
        dtype: Dtype policy of the blocks, for example `"mixed_bfloat16"`.
        labels: One name per class; `num_classes` may then be left out. Other names than
            those of the weights give a new zero head.

    Returns:
        An `MLPMixer`, a functional `keras.Model`.

    Raises:
        ValueError: If an argument is out of its range, there is no such checkpoint, or
            the file does not fit the model.
        FileNotFoundError: If there is no such file, repository or revision.
        OSError: If a download fails; `ConnectionError` without a connection.

    Reference: paper, table 1.
    """
    numbers = parse_variant(variant)
    shape = check_image_shape(input_shape or numbers.image_shape, numbers.patch_size)
    # Now, not after a download.
    if num_classes not in (None, 0):
        check_dim("num_classes", num_classes)
    if labels is not None:
        labels = check_labels(labels, num_classes)
        num_classes = len(labels)
    check_rate("dropout_rate", dropout_rate)
    check_rate("stochastic_depth_rate", stochastic_depth_rate)
    keras.activations.get(classifier_activation)
    keras.dtype_policies.get(dtype)

    source = _find(variant, weights, shape)

    def build(num_classes: int | None, weights: Path | None = None) -> MLPMixer:
        return mlp_mixer(
            **numbers.sizes,
            input_shape=source.image_shape,
            num_classes=num_classes,
            weights=weights,
            approximate_gelu=source.approximate_gelu,
            preprocessing=source.preprocessing,
            classifier_activation=classifier_activation,
            include_preprocessing=include_preprocessing,
            dropout_rate=dropout_rate,
            stochastic_depth_rate=stochastic_depth_rate,
            name=name or f"mixer_{variant.replace('/', '').lower()}",
            dtype=dtype,
        )

    if isinstance(source.path, Future):
        with zero_kernels():
            model = build(source.num_classes if num_classes is None else num_classes)
        load_weights(model, source.path.result())
    else:
        model = build(num_classes, source.path)
    if model.config["num_classes"] == source.num_classes:
        model.labels = source.labels
    if labels is not None:
        name_head(model, labels)
    return model if source.image_shape == shape else resize(model, shape)


class _Source(NamedTuple):
    """Where weights lie, and what must be known of them beside the file.

    The path of a cached file is a `Future`: its SHA-256 takes as long as to build the
    graph, and is computed meanwhile.
    """

    path: Path | Future[Path] | None
    image_shape: tuple[int, int, int]
    approximate_gelu: bool | None = None
    preprocessing: Preprocessing | None = None
    num_classes: int | None = None
    labels: tuple[str, ...] | None = None


def _find(
    variant: str, weights: str | Path | None, input_shape: tuple[int, int, int]
) -> _Source:
    """Return the source of `weights`, downloaded if need be."""
    if weights is None:
        return _Source(None, input_shape)
    numbers = parse_variant(variant)
    own_shape = numbers.image_shape
    if str(weights).endswith(WEIGHT_ENDINGS):
        path = Path(weights).expanduser()
        if input_shape != own_shape:
            # The token MLPs tell which of the two sizes the file is for.
            of_file = describe_shapes(read_shapes(path)[0])["num_patches"]
            own, asked = (
                num_patches(shape, numbers.patch_size)
                for shape in (own_shape, input_shape)
            )
            if of_file == asked != own:
                own_shape = input_shape
        return _Source(path, own_shape)
    names = [checkpoint.name for checkpoint in list_checkpoints(variant)]
    if str(weights).startswith("hf://") or (
        str(weights) not in names
        and os.path.isdir(os.path.expanduser(str(weights)))  # '' is none
    ):
        entry, path = locate(weights)
        return _Source(
            path,
            entry.architecture["input_shape"],
            entry.architecture["approximate_gelu"],
            entry.preprocessing,
            entry.architecture["num_classes"],
            entry.labels,
        )
    checkpoint = find_checkpoint(variant, weights)
    if input_shape[2] != 3:
        raise ValueError(
            "`input_shape` must have 3 channels with a named checkpoint. "
            f"Received: input_shape={input_shape}"
        )
    where: Path | Future[Path]
    if is_cached(checkpoint):
        hashing = ThreadPoolExecutor(1)
        where = hashing.submit(weights_path, checkpoint)
        hashing.shutdown(wait=False)
    else:
        where = weights_path(checkpoint)
    return _Source(
        where,
        own_shape,
        checkpoint.approximate_gelu,
        checkpoint.preprocessing,
        checkpoint.num_classes,
        checkpoint.labels,
    )
