"""Which patches a class score is made of: exact shares, or occlusion.

Source: the exact shares follow from the head being linear (paper, section 2): a mean
over patches and a linear map can be exchanged. Occlusion: Zeiler and Fergus 2013,
"Visualizing and Understanding Convolutional Networks", section 4.2.
"""

from numbers import Integral
from typing import TYPE_CHECKING, Any, Literal

import keras
import numpy as np
from numpy.typing import NDArray

from keras_mixer.checks import check_dim
from keras_mixer.models import MLPMixer, as_mixer
from keras_mixer.visualize.figure import (
    TINY,
    add_caption,
    new_figure,
    to_float,
)
from keras_mixer.visualize.model_view import Region, as_input, as_seen
from keras_mixer.visualize.names import readable, text_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Method = Literal["exact", "occlusion"]

_CAPTIONS = {
    "exact": "White is the mean share. Red patches give the class more than that, blue "
    "ones less, which need not be below zero; all shares and the bias of the head add "
    "up to the logit. A share is where the evidence ends, not where it came from: the "
    "blocks have mixed all patches before.",
    "occlusion": "Red patches: the logit falls when the patch is replaced by grey; "
    "blue: it rises. The drops do not add up to the logit, and a grey square is itself "
    "something that the model sees.",
}


def evidence(
    model: keras.Model,
    image: Any,
    class_index: int,
    method: Method = "exact",
    *,
    batch_size: int = 32,
) -> NDArray[np.float64]:
    """Return how much each patch contributes to the score of a class.

    `"exact"`: with `t_s` the token of patch s after the final norm, S patches, and
    `w_c`, `b_c` the kernel column and the bias of the head for class c, the logit is

        logit_c = mean_s(t_s) . w_c + b_c = sum_s share_s + b_c,
        share_s = t_s . w_c / S

    so the shares add up to the logit minus the bias. It takes one pass. A share says
    where the evidence ends, not where it came from: every block mixes all patches, so
    the token of a patch also holds what other patches contributed. It is no causal
    statement about the pixels of that patch.

    `"occlusion"`: `drop_s = logit_c(image) - logit_c(image with patch s grey)`, S + 1
    passes. It is causal for this one replacement, but the drops do not add up to
    anything, and a grey square is itself something that the model sees. Grey is the
    middle of the value range, 127.5 for pixels (0 after Google's normalisation to
    [-1, 1]).

    Both take logits, also where the head has a softmax.

    Args:
        model: An `MLPMixer` with a head that is not quantized, or a Keras model around
            a Mixer that `models.as_mixer` takes, with one dense layer as its head.
        image: One image. An array of the model's own shape `(height, width, channels)`
            is taken as it is, as the model takes it. Anything else (a path, a PIL
            image, an array of another size) goes through `preprocess`.
        class_index: Number of the class, in `[0, num_classes)`.
        method: `"exact"` or `"occlusion"`.
        batch_size: Images per step of the occlusion. Positive.

    Returns:
        Array `(rows, columns)`, one number per patch where it lies in the image.

    Raises:
        FileNotFoundError: If `image` is a path that does not exist.
        ValueError: If an argument is out of its range or the model has no such head.
    """
    if method not in _CAPTIONS:
        raise ValueError(
            f"`method` must be 'exact' or 'occlusion'. Received: method={method!r}"
        )
    check_dim("batch_size", batch_size)
    mixer = as_mixer(model)
    column, _ = _head_of(mixer, class_index)
    pixels = as_input(mixer, image)
    if method == "exact":
        tokens = to_float(mixer.features("pre_head_layer_norm")(pixels[None]))[0]
        shares = tokens @ column / len(tokens)  # (S, C) @ (C,)
    else:
        shares = _drops(mixer, pixels, column, batch_size)
    return shares.reshape(mixer.get_layer("stem").grid)


def evidence_figure(
    model: keras.Model,
    image: Any,
    class_index: int | None = None,
    method: Method = "exact",
    *,
    batch_size: int = 32,
) -> "Figure":
    """Draw `evidence` over the picture as a person sees it.

    The picture keeps its size and aspect ratio; a frame shows the part that the model
    sees. Exact shares are coloured by their difference from their mean, red above and
    blue below: often every patch speaks for the class, and only how much differs.
    Drops of the occlusion are coloured by their difference from zero. One patch in 20,
    the farthest out, has the last colour of the scale, however far out it lies.

    Args:
        model: As in `evidence`.
        image: As in `evidence`.
        class_index: Number of the class; `None` for the one with the best score.
        method: As in `evidence`.
        batch_size: As in `evidence`.

    Raises:
        ImportError: If matplotlib is not installed.
        FileNotFoundError: If `image` is a path that does not exist.
        ValueError: As in `evidence`, or if the images have neither 1 nor 3 channels.
    """
    mixer = as_mixer(model)
    _head_of(mixer, 0)
    pixels = as_input(mixer, image)
    if class_index is None:
        class_index = int(to_float(mixer(pixels[None]))[0].argmax())
    shares = evidence(mixer, pixels, class_index, method, batch_size=batch_size)
    column, bias = _head_of(mixer, class_index)
    pooled = to_float(mixer.features("pre_logits")(pixels[None]))[0]
    logit = float(pooled @ column) + bias
    picture, region = as_seen(mixer, image)

    name = f"class {class_index}"
    if mixer.labels:
        name = readable(mixer.labels[class_index], class_index)
    title = f"{name}: logit {logit:.2f}"
    if method == "exact":
        sign = "-" if bias < 0 else "+"
        title += f" = {shares.sum():.2f} of the patches {sign} {abs(bias):.2f} bias"
    aspect = picture.shape[1] / picture.shape[0]
    figure = new_figure(9.5, min(max(4.1 / aspect + 1.1, 3.0), 11))
    figure.suptitle(title, fontsize=11, **text_style(title))
    left, right = figure.subplots(1, 2)
    left.imshow(picture, interpolation="nearest")
    grey = picture.mean(axis=2, keepdims=True)
    right.imshow(np.broadcast_to(0.4 + 0.6 * grey, picture.shape))
    centre = float(shares.mean()) if method == "exact" else 0.0
    overlay = _draw_shares(right, shares, region, centre)
    for axes in (left, right):
        axes.axis("off")
        _draw_frame(axes, region, picture.shape)
    bar = figure.colorbar(overlay, ax=right, shrink=0.75, aspect=25, extend="both")
    bar.set_label(
        f"share of the logit (white: the mean, {centre:.3g})"
        if method == "exact"
        else "drop of the logit (white: none)"
    )
    bar.outline.set_visible(False)
    add_caption(figure, _CAPTIONS[method])
    return figure


def _head_of(model: MLPMixer, class_index: int) -> tuple[NDArray[np.float64], float]:
    """Return the head's kernel column `(C,)` and bias of a class."""
    num_classes = model.config["num_classes"]
    if not num_classes:
        raise ValueError(
            "`model` must have a head: its scores are what is explained. Received: "
            "num_classes=0"
        )
    if (
        not isinstance(class_index, Integral)
        or isinstance(class_index, bool)
        or not 0 <= class_index < num_classes
    ):
        raise ValueError(
            f"`class_index` must be an integer in [0, {num_classes}). Received: "
            f"class_index={class_index!r}"
        )
    head = model.get_layer("head")
    if head.quantization_mode is not None:
        raise ValueError(
            "`model` must have a head in float: a quantized one is not linear. "
            f"Received: a head in {head.quantization_mode}. Use the model from before "
            "`quantize`."
        )
    kernel = to_float(keras.ops.convert_to_tensor(head.kernel))
    return kernel[:, class_index], float(to_float(head.bias)[class_index])


def _drops(
    model: MLPMixer, pixels: NDArray[np.float32], column: NDArray[Any], batch_size: int
) -> NDArray[np.float64]:
    """Return by how much the logit falls with each patch grey, `(S,)`."""
    rows, columns = model.get_layer("stem").grid
    size = model.get_layer("stem").patch_size
    grey = np.full(pixels.shape[-1], 127.5, "float32")
    if not model.config["include_preprocessing"]:
        grey = model.preprocessing.normalize(grey)
    network = model.features("pre_logits")

    def occluded(patch: int) -> NDArray[np.float32]:
        image = pixels.copy()
        # Number S is the whole image; higher numbers only fill the last batch.
        if patch < rows * columns:
            top, left = size * (patch // columns), size * (patch % columns)
            image[top : top + size, left : left + size] = grey
        return image

    logits: list[NDArray[np.float64]] = []
    total = rows * columns + 1
    for start in range(0, total, batch_size):
        # Batches of one shape, so that the model is compiled once.
        batch = np.stack([occluded(start + i) for i in range(min(batch_size, total))])
        logits.append(to_float(network.predict_on_batch(batch)) @ column)
    scores = np.concatenate(logits)
    return scores[rows * columns] - scores[: rows * columns]


def _draw_shares(
    axes: "Axes",
    shares: NDArray[np.float64],
    region: Region,
    centre: float,
) -> Any:
    """Draw one square per patch, the more opaque the farther from `centre`.

    The colours end at the 95th percentile of the distances: a patch or two may lie so
    far out that all others would be white.
    """
    distances = np.abs(shares - centre)
    limit = max(float(np.quantile(distances, 0.95)), TINY)
    left, right, bottom, top = (edge - 0.5 for edge in region)
    return axes.imshow(
        shares,
        cmap="RdBu_r",
        vmin=centre - limit,
        vmax=centre + limit,
        alpha=0.1 + 0.6 * np.minimum(distances / limit, 1),
        extent=(left, right, bottom, top),
        interpolation="nearest",
    )


def _draw_frame(axes: "Axes", region: Region, shape: tuple[int, ...]) -> None:
    left, right, bottom, top = (edge - 0.5 for edge in region)
    axes.plot(
        [left, right, right, left, left],
        [top, top, bottom, bottom, top],
        color="#555555",
        linewidth=1,
    )
    axes.set(xlim=(-0.5, shape[1] - 0.5), ylim=(shape[0] - 0.5, -0.5))
