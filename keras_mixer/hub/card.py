"""The model card: what the page of a published model says.

Nothing is invented: what is not in the model and was not given is said to be unknown.
What users give is text: it cannot become markup, and paths of their machine are left
out.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping
from typing import TypedDict

from keras_mixer.checkpoints import parse_address
from keras_mixer.models import MixerConfig, MLPMixer
from keras_mixer.preprocessing import Preprocessing
from keras_mixer.variants import num_patches, parameter_count

# What may be said of where the weights come from, and the words of the card for it.
PROVENANCE = {
    "training": "Training",
    "command": "Command",
    "versions": "Versions and date",
    "source": "Source",
    "sha256": "sha256 of the source",
    "conversion": "Conversion",
    "verification": "Verification",
}


class Facts(TypedDict, total=False):
    """What a card says that is not in the model; see `write_card`."""

    repo_id: str
    licence: str
    datasets: Iterable[str]
    metrics: Mapping[str, object] | None
    base_model: str | None


# An absolute path of POSIX or Windows, a path from the home folder, a `file:` address;
# not the path in an address of the web, nor the `/` in "B/16".
_LOCAL_PATH = re.compile(
    r"(?:file://|(?<![\w./~<\\])(?=~?/[^\s/]|[A-Za-z]:[\\/]|\\\\[^\s\\]))"
    r"[^\s'\"`|,;()<>]*[\\/]"
)
_MARKUP = re.compile(r"([\\*\[\]<>|~$])")

_TAGS = ["mlp-mixer", "keras_mixer", "image-classification"]
_MARK = "<!-- Written by keras_mixer. Edit it: a card that was edited is kept. sha256:"

_CARD = """\
---
{front_matter}
---

# {title}

An [MLP-Mixer](https://arxiv.org/abs/2105.01601), an image model made of nothing but
multi-layer perceptrons. It takes images of {height} x {width} pixels and returns
{output}. It has {parameters:,} parameters.

## Use

With Keras 3 alone, on TensorFlow, JAX or PyTorch:

```python
import keras

model = keras.saving.load_model("hf://{repo_id}")
```

With the package `keras_mixer`, which also prepares the images, adapts the model to
other image sizes and takes a revision (`"hf://{repo_id}@<commit>"`):

```python
import keras_mixer

model = keras_mixer.from_pretrained("hf://{repo_id}")
pixels = keras_mixer.preprocess("photo.jpg", model)
{predict}
```

{timm}{same}

## Input

Arrays of shape `(batch, {height}, {width}, {channels})`, channels last{rgb}.

- {normalization}
- {resizing}

`keras_mixer.preprocess` does this for files, PIL images and arrays.

## Architecture

| | |
| --- | --- |
{architecture}

## Results

{results}

## Provenance

{provenance}

The weights are stored in float32. `checksums.json` holds the sha256 and the size of
every other file here; `keras_mixer` checks them before it opens a file.

## Limits

- The image size is fixed at {height} x {width}. `keras_mixer.resize` makes a model for
  another one, to be fine-tuned.
- What is not listed under Results was not measured: accuracy on other data, robustness,
  fairness.
- The state of an optimizer is not included.

## Citation

```bibtex
@inproceedings{{tolstikhin2021mixer,
  title={{MLP-Mixer: An all-MLP Architecture for Vision}},
  author={{Tolstikhin, Ilya and Houlsby, Neil and Kolesnikov, Alexander and Beyer, Lucas
    and Zhai, Xiaohua and Unterthiner, Thomas and Yung, Jessica and Steiner, Andreas
    and Keysers, Daniel and Uszkoreit, Jakob and Lucic, Mario and Dosovitskiy, Alexey}},
  booktitle={{Advances in Neural Information Processing Systems}},
  year={{2021}}
}}
```
"""


_TIMM = """\
With [timm](https://github.com/huggingface/pytorch-image-models), in PyTorch, which
prepares the images {resizing}:

```python
import timm

model = timm.create_model("hf-hub:{repo_id}", pretrained=True).eval()
data_config = timm.data.resolve_model_data_config(model)
transform = timm.data.create_transform(**data_config)
```

"""


def write_card(
    model: MLPMixer,
    *,
    repo_id: str = "owner/name",
    licence: str = "apache-2.0",
    datasets: Iterable[str] = (),
    metrics: Mapping[str, object] | None = None,
    base_model: str | None = None,
    provenance: Mapping[str, str] | None = None,
    timm: bool = False,
) -> str:
    """Return the text of the card of a model.

    Args:
        model: An `MLPMixer`.
        repo_id: `"owner/name"` on the Hub.
        licence: Identifier of the licence of the weights.
        datasets: What it was trained on, by their names on the Hub.
        metrics: Name -> value of what was measured.
        base_model: The repository on the Hub that it was fine-tuned from.
        provenance: What is known of its origin, by the keys of `PROVENANCE`. Text in
            backquotes is shown as code.
        timm: Whether timm can read it, too.

    Raises:
        ValueError: If `repo_id` is not of the form owner/name.
    """
    from huggingface_hub import ModelCardData

    if parse_address(f"hf://{repo_id}")[0] != repo_id:
        raise ValueError(f"`repo_id` must be owner/name. Received: {repo_id!r}")
    datasets = [without_paths(name) for name in datasets]
    base_model = without_paths(base_model) if base_model else None
    config, record = model.config, model.preprocessing
    height, width, channels = config["input_shape"]
    front_matter = ModelCardData(
        library_name="keras",
        license=without_paths(licence).lower(),
        pipeline_tag="image-classification",
        tags=[*_TAGS, "timm"] if timm else _TAGS,
        datasets=datasets or None,
        metrics=[without_paths(name) for name in metrics or ()] or None,
        base_model=base_model,
    )
    text = _CARD.format(
        front_matter=front_matter.to_yaml().strip(),
        title=repo_id.split("/")[1],
        repo_id=repo_id,
        height=height,
        width=width,
        channels=channels,
        rgb={3: ": red, green, blue", 1: ": grey"}.get(channels, ""),
        output=_output(config),
        parameters=parameter_count(config),
        predict=_PREDICT[_kind(model)],
        timm=_TIMM.format(repo_id=repo_id, resizing=_timm_resizing(record))
        if timm
        else "",
        same=_same(config, timm),
        normalization=_normalization(record, config["include_preprocessing"]),
        resizing=_resizing(record, height, width),
        architecture=_table(_architecture(config)),
        results=_results(datasets, metrics),
        provenance=_provenance(base_model, provenance or {}),
    )
    return marked(text)


def without_paths(text: object) -> str:
    """Return a text on one line, where paths of this machine are file names alone."""
    printable = (char if char.isprintable() else " " for char in str(text))
    return _LOCAL_PATH.sub("", " ".join("".join(printable).split()))


def _escaped(text: object) -> str:
    """Return a text that Markdown shows as it is, apart from code in backquotes."""
    parts = without_paths(text).split("`")
    if len(parts) % 2 == 0:  # a backquote without its second one
        parts = ["'".join(parts)]
    for i, part in enumerate(parts):
        # In code only the bar of a table still means something.
        parts[i] = part.replace("|", "\\|") if i % 2 else _MARKUP.sub(r"\\\1", part)
    return "`".join(parts)


def marked(text: str) -> str:
    """Return a card with the mark by which `is_written` knows it."""
    return f"{text}\n{_mark(text)}\n"


def is_written(card: str) -> bool:
    """Whether the text is one of `write_card`, and not edited since."""
    text, _, _ = card.rpartition(f"\n{_MARK}")
    return card == marked(text)


def _mark(text: str) -> str:
    return f"{_MARK} {hashlib.sha256(text.encode()).hexdigest()} -->"


_PREDICT = {
    "labelled": """\
print(keras_mixer.decode_predictions(model.predict(pixels), model.labels))""",
    "unlabelled": """\
predictions = model.predict(pixels)""",
    "headless": """\
features = model.predict(pixels)""",
}


def _kind(model: MLPMixer) -> str:
    if not model.config["num_classes"]:
        return "headless"
    return "labelled" if model.labels else "unlabelled"


def _output(config: MixerConfig) -> str:
    if not config["num_classes"]:
        return f"{config['hidden_dim']} features (it has no head)"
    kind = {"softmax": "probabilities", "linear": "logits"}.get(
        str(config["classifier_activation"]),
        f"{config['classifier_activation']} scores",
    )
    return f"the {kind} of {config['num_classes']} classes"


def _timm_resizing(record: Preprocessing) -> str:
    if record.library == "pillow":
        return "as described below"
    return "almost as described below (with antialiasing)"


def _same(config: MixerConfig, timm: bool) -> str:
    if not timm:
        return "Both compute the same, in float32."
    after = config["classifier_activation"] not in (None, "linear")
    return "All compute the same, in float32" + (
        f"; timm returns logits, before the {config['classifier_activation']}."
        if after
        else "."
    )


def _normalization(record: Preprocessing, inside: bool) -> str:
    ranges = [f"[{low:g}, {high:g}]" for low, high in record.ranges]
    where = " and ".join(ranges) + (", by channel" if len(ranges) > 1 else "")
    if inside:
        return (
            f"Pixels in [0, 255], of any dtype. The model itself maps them to {where}."
        )
    scales, offsets = (
        ", ".join(f"{number:.6g}" for number in numbers)
        for numbers in zip(
            *(((high - low) / 255, low) for low, high in record.ranges), strict=True
        )
    )
    if len(ranges) > 1:
        scales, offsets = f"[{scales}]", f"[{offsets}]"
    return (
        f"Pixels in [0, 255] that were mapped to {where}, that is "
        f"`pixels * {scales} + {offsets}`. The model does not do it."
    )


def _resizing(record: Preprocessing, height: int, width: int) -> str:
    pillow = record.library == "pillow"
    smoothed = "with antialiasing, by Pillow" if pillow else "without antialiasing"
    method = f"{record.interpolation}, {smoothed}"
    if record.transform == "resize":
        return (
            f"Images are resized to {height} x {width}, whatever their aspect ratio "
            f"({method})."
        )
    tall, wide = (
        int(edge / record.crop_fraction)
        if pillow
        else round(edge / record.crop_fraction)
        for edge in (height, width)
    )
    if record.transform == "resize_pad":
        return (
            f"Images are resized so that they just fit in {tall} x {wide}, in their "
            f"aspect ratio ({method}); the central {height} x {width} are taken, with "
            f"grey levels {', '.join(map(str, record.fill))} where there is no image."
        )
    if record.transform == "resize_crop":
        how = f"resized to {tall} x {wide}, whatever their aspect ratio"
    else:
        how = f"resized so that they just cover {tall} x {wide}, in their aspect ratio"
    return f"Images are {how} ({method}); the central {height} x {width} are taken."


def _architecture(config: MixerConfig) -> dict[str, object]:
    patch_size = config["patch_size"]
    patches = num_patches(config["input_shape"], patch_size)
    rows: dict[str, object] = {
        "Patches": f"{patches} of {patch_size} x {patch_size} pixels",
        "Blocks": config["num_blocks"],
        "Width of a token": config["hidden_dim"],
        "Width of the token-mixing MLPs": config["tokens_mlp_dim"],
        "Width of the channel-mixing MLPs": config["channels_mlp_dim"],
        "GELU": "tanh form" if config["approximate_gelu"] else "exact form",
        "Classes": config["num_classes"] or "none",
        "Parameters": f"{parameter_count(config):,}",
    }
    for name in ("dropout_rate", "stochastic_depth_rate"):
        if config[name]:
            rows[f"{name.replace('_', ' ').capitalize()} in training"] = config[name]
    return rows


def _results(datasets: Iterable[str], metrics: Mapping[str, object] | None) -> str:
    trained = f"Trained on: {', '.join(map(_escaped, datasets)) or 'not stated'}.\n\n"
    if not metrics:
        return f"{trained}Not measured."
    return f"{trained}| Metric | Value |\n| --- | --- |\n{_table(metrics)}"


def _provenance(base_model: str | None, provenance: Mapping[str, str]) -> str:
    known = {"Fine-tuned from": base_model} if base_model else {}
    known |= {
        PROVENANCE[key]: provenance[key] for key in PROVENANCE if key in provenance
    }
    if not known:
        return "Not stated."
    return "\n".join(f"- {name}: {_escaped(value)}" for name, value in known.items())


def _table(rows: Mapping[str, object]) -> str:
    return "\n".join(
        f"| {_escaped(name)} | {_escaped(value)} |" for name, value in rows.items()
    )
