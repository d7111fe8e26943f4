"""The model card: what the page of a published model says.

Nothing is invented: what is not in the model and was not given is said to be unknown.
"""

import hashlib

from keras_mixer.variants import parameter_count

# What may be told of where the weights come from, as text, and how the card puts it.
PROVENANCE = {
    "training": "Training",
    "command": "Command",
    "versions": "Versions and date",
    "source": "Source",
    "sha256": "sha256 of the source",
    "conversion": "Conversion",
    "verification": "Verification",
}

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

Both compute the same, in float32.

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


def write_card(
    model,
    *,
    repo_id="owner/name",
    licence="apache-2.0",
    datasets=(),
    metrics=None,
    base_model=None,
    provenance=None,
):
    """Return the text of the card of a model.

    Args:
        model: An `MLPMixer`.
        repo_id: `"owner/name"` on the Hub.
        licence: Identifier of the licence of the weights.
        datasets: What it was trained on, by their names on the Hub.
        metrics: Name -> value of what was measured.
        base_model: The repository on the Hub that it was fine-tuned from.
        provenance: What is told of its origin, by the keys of `PROVENANCE`.
    """
    from huggingface_hub import ModelCardData

    config, record = model.config, model.preprocessing
    height, width, channels = config["input_shape"]
    front_matter = ModelCardData(
        library_name="keras",
        license=licence.lower(),
        pipeline_tag="image-classification",
        tags=_TAGS,
        datasets=list(datasets) or None,
        metrics=list(metrics or ()) or None,
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
        normalization=_normalization(record, config["include_preprocessing"]),
        resizing=_resizing(record, height, width),
        architecture=_table(_architecture(config)),
        results=_results(datasets, metrics),
        provenance=_provenance(base_model, provenance or {}),
    )
    return f"{text}\n{_mark(text)}\n"


def is_written(card):
    """Whether the text is one of `write_card`, and not edited since."""
    text, _, _ = card.rpartition(f"\n{_MARK}")
    return card == f"{text}\n{_mark(text)}\n"


def _mark(text):
    return f"{_MARK} {hashlib.sha256(text.encode()).hexdigest()} -->"


_PREDICT = {
    "labelled": """\
print(keras_mixer.decode_predictions(model.predict(pixels), model.labels))""",
    "unlabelled": """\
predictions = model.predict(pixels)""",
    "headless": """\
features = model.predict(pixels)""",
}


def _kind(model):
    if not model.config["num_classes"]:
        return "headless"
    return "labelled" if model.labels else "unlabelled"


def _output(config):
    if not config["num_classes"]:
        return f"{config['hidden_dim']} features (it has no head)"
    kind = {"softmax": "probabilities", "linear": "logits"}.get(
        config["classifier_activation"], f"{config['classifier_activation']} scores"
    )
    return f"the {kind} of {config['num_classes']} classes"


def _normalization(record, inside):
    low, high = record.value_range
    if inside:
        return (
            "Pixels in [0, 255], of any dtype. The model itself maps them to "
            f"[{low:g}, {high:g}]."
        )
    return (
        f"Pixels in [0, 255] that were mapped to [{low:g}, {high:g}], that is "
        f"`pixels * {record.scale:.6g} + {record.offset:g}`. The model does not do it."
    )


def _resizing(record, height, width):
    method = f"{record.interpolation}, without antialiasing"
    if record.transform == "resize":
        return (
            f"Images are resized to {height} x {width}, whatever their aspect ratio "
            f"({method})."
        )
    tall, wide = (round(edge / record.crop_fraction) for edge in (height, width))
    if record.transform == "resize_crop":
        how = f"resized to {tall} x {wide}, whatever their aspect ratio"
    else:
        how = f"resized so that they just cover {tall} x {wide}, in their aspect ratio"
    return f"Images are {how} ({method}); the central {height} x {width} are taken."


def _architecture(config):
    height, width, _ = config["input_shape"]
    patch_size = config["patch_size"]
    num_patches = (height // patch_size) * (width // patch_size)
    rows = {
        "Patches": f"{num_patches} of {patch_size} x {patch_size} pixels",
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


def _results(datasets, metrics):
    trained = f"Trained on: {', '.join(datasets) if datasets else 'not stated'}.\n\n"
    if not metrics:
        return f"{trained}Not measured."
    return f"{trained}| Metric | Value |\n| --- | --- |\n{_table(metrics)}"


def _provenance(base_model, provenance):
    told = {"Fine-tuned from": base_model} if base_model else {}
    told |= {
        PROVENANCE[key]: provenance[key] for key in PROVENANCE if key in provenance
    }
    if not told:
        return "Not stated."
    return "\n".join(f"- {name}: {value}" for name, value in told.items())


def _table(rows):
    return "\n".join(f"| {name} | {value} |" for name, value in rows.items())
