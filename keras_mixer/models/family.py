"""The constructors of the family: `MixerS32` ... `MixerH14` and `MixerTi4`."""

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

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
from keras_mixer.models.mixer import load_weights, mlp_mixer
from keras_mixer.models.resize import resize
from keras_mixer.preprocessing import Preprocessing
from keras_mixer.variants import parse_variant

_DOC = """Build Mixer-{variant}: {num_blocks} blocks of width {hidden_dim}.

    Args:
        weights: `None` for random weights, {weights}`"hf://owner/name[@revision]"`, or
            the path of an official `.npz`, a timm `.safetensors` or a `.weights.h5` of
            this package.
        input_shape: `(height, width, channels)` of the images, channels last; `None`
            for {image_size} x {image_size} RGB. At another size than the weights' own,
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
        name: Name of the model; `None` for "{name}".
        dtype: Dtype policy of the blocks, for example `"mixed_bfloat16"`.

    Returns:
        An `MLPMixer`, a functional `keras.Model`.

    Raises:
        ValueError: If an argument is out of its range, there is no such checkpoint, or
            the file does not fit the model.
        FileNotFoundError: If there is no such file, repository or revision.
        OSError: If a download fails; `ConnectionError` without a connection.

    Reference: paper, table 1.
    """


def _constructor(variant):
    numbers = parse_variant(variant)
    default_name = f"mixer_{variant.replace('/', '').lower()}"

    def constructor(
        weights=None,
        *,
        input_shape=None,
        num_classes=None,
        classifier_activation="softmax",
        include_preprocessing=True,
        dropout_rate=0.0,
        stochastic_depth_rate=0.0,
        name=None,
        dtype=None,
    ):
        own_shape = numbers.image_shape
        input_shape = own_shape if input_shape is None else tuple(input_shape)
        # Now, not after a download.
        check_image_shape(input_shape, numbers.patch_size)
        if num_classes not in (None, 0):
            check_dim("num_classes", num_classes)
        check_rate("dropout_rate", dropout_rate)
        check_rate("stochastic_depth_rate", stochastic_depth_rate)
        keras.activations.get(classifier_activation)
        keras.dtype_policies.get(dtype)

        source = _find(variant, weights, input_shape)

        def build(num_classes, weights=None):
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
                name=name or default_name,
                dtype=dtype,
            )

        if isinstance(source.path, Future):
            with zero_kernels():
                model = build(
                    source.num_classes if num_classes is None else num_classes
                )
            load_weights(model, source.path.result())
        else:
            model = build(num_classes, source.path)
        if model.config["num_classes"] == source.num_classes:
            model.labels = source.labels
        same_size = source.image_shape == input_shape
        return model if same_size else resize(model, input_shape)

    names = [checkpoint.name for checkpoint in list_checkpoints(variant)]
    constructor.__name__ = constructor.__qualname__ = f"Mixer{variant.replace('/', '')}"
    constructor.__doc__ = _DOC.format(
        variant=variant,
        num_blocks=numbers.num_blocks,
        hidden_dim=numbers.hidden_dim,
        image_size=numbers.image_size,
        weights="".join(f'`"{name}"`, ' for name in names),
        name=default_name,
    )
    return constructor


class _Source(NamedTuple):
    """Where weights lie, and what must be known of them beside the file.

    The path of a cached file is a `Future`: its SHA-256 takes as long as to build the
    graph, and is computed meanwhile.
    """

    path: Path | Future | None
    image_shape: tuple
    approximate_gelu: bool | None = None
    preprocessing: Preprocessing | None = None
    num_classes: int | None = None
    labels: tuple[str, ...] | None = None


def _find(variant, weights, input_shape):
    """Return the source of `weights`, downloaded if need be."""
    if weights is None:
        return _Source(None, input_shape)
    numbers = parse_variant(variant)
    own_shape = numbers.image_shape
    if str(weights).endswith(WEIGHT_ENDINGS):
        path = Path(weights)
        if input_shape != own_shape:
            # The token MLPs tell which of the two sizes the file is for.
            num_patches = describe_shapes(read_shapes(path)[0])["num_patches"]
            own, asked = (
                height * width // numbers.patch_size**2
                for height, width, _ in (own_shape, input_shape)
            )
            if num_patches == asked != own:
                own_shape = input_shape
        return _Source(path, own_shape)
    if str(weights).startswith("hf://"):
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
    if is_cached(checkpoint):
        hashing = ThreadPoolExecutor(1)
        path = hashing.submit(weights_path, checkpoint)
        hashing.shutdown(wait=False)
    else:
        path = weights_path(checkpoint)
    return _Source(
        path,
        own_shape,
        checkpoint.approximate_gelu,
        checkpoint.preprocessing,
        checkpoint.num_classes,
        checkpoint.labels,
    )


MixerTi4 = _constructor("Ti/4")
MixerS32 = _constructor("S/32")
MixerS16 = _constructor("S/16")
MixerS8 = _constructor("S/8")
MixerB32 = _constructor("B/32")
MixerB16 = _constructor("B/16")
MixerL32 = _constructor("L/32")
MixerL16 = _constructor("L/16")
MixerH14 = _constructor("H/14")

# Variant name -> constructor, for callers that have the name as a string.
CONSTRUCTORS = {
    "Ti/4": MixerTi4,
    "S/32": MixerS32,
    "S/16": MixerS16,
    "S/8": MixerS8,
    "B/32": MixerB32,
    "B/16": MixerB16,
    "L/32": MixerL32,
    "L/16": MixerL16,
    "H/14": MixerH14,
}
