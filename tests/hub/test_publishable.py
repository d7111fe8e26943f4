"""What is written can be read, and says nothing that nobody meant to publish."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import TINY
from drawn import drawn_model

from keras_mixer.hub import card
from keras_mixer.hub.model_files import write_folder
from keras_mixer.hub.publish import from_pretrained, push_to_hub
from keras_mixer.models.mixer import mlp_mixer
from keras_mixer.preprocessing import Preprocessing

pytestmark = pytest.mark.backend_free

HOSTILE = "x](y) <b>|*bold* `code` \n# Head\x1b[2J"
PATHS = "/home/me/secret/train.py on C:\\Users\\me\\data.zip, ~/runs/a, file:///mnt/b"


def of_record(**record):
    return mlp_mixer(**TINY, preprocessing=Preprocessing(**record))


def labelled(*labels):
    model = drawn_model()
    model.labels = labels
    return model


def many_long_labels():
    sizes = {**TINY, "num_classes": 2200}
    model = mlp_mixer(**sizes)
    model.labels = ["x" * 2000] * 2200
    return model


def not_finite():
    model = drawn_model()
    model.get_layer("head").bias.assign(np.full(5, np.nan))
    return model


UNREADABLE = {
    "name": (lambda: drawn_model(name="x" * 201), "1 to 200 characters.*201 char"),
    "label": (lambda: labelled("x" * 2001, *"abcd"), "a label has 2001 characters"),
    "labels": (many_long_labels, "config.json has more than 4194304 bytes"),
    "infinite range": (lambda: of_record(value_range=(-1e308, 1e308)), "float32 holds"),
    "range of nothing": (lambda: of_record(value_range=(0, 1e-60)), "float32 holds"),
    "crop": (lambda: of_record(crop_fraction=1e-9), r"crop_fraction must lie in \["),
    "not finite": (not_finite, "head/bias: 5 of its 5 numbers are not finite"),
}


@pytest.mark.parametrize("make, match", UNREADABLE.values(), ids=UNREADABLE)
def test_what_nobody_could_read_is_refused(make, match, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_none")
    model = make()
    with pytest.raises(ValueError, match=match):
        write_folder(model, tmp_path / "new")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match=match):  # before any request
        push_to_hub(model, "alice/mixer")


@pytest.mark.parametrize("name", ["x" * 200, "\u732b", "with space"])
def test_what_is_at_the_limit_is_written(name, tmp_path):
    model = drawn_model(name=name)
    model.labels = ["y" * 2000, "a|b", "\x1b[2J", "c\nd", "\u202e"]
    write_folder(model, tmp_path / "new")
    read = from_pretrained(tmp_path / "new")
    assert read.name == name and read.labels == tuple(model.labels)


def test_text_of_users_is_no_markup():
    text = card.write_card(
        drawn_model(),
        metrics={HOSTILE: HOSTILE},
        datasets=[HOSTILE],
        base_model="a\nb: [",
        licence="apache-2.0\ntags: [evil]",
        provenance={"source": HOSTILE, "command": "`a | b`"},
    )
    _, front_matter, body = text.split("---\n", 2)
    front = yaml.safe_load(front_matter)
    assert front["tags"] == ["mlp-mixer", "keras_mixer", "image-classification"]
    assert front["license"] == "apache-2.0 tags: [evil]"
    assert "\x1b" not in text and "\n# Head" not in text
    shown = r"x\](y) \<b\>\|\*bold\* `code` # Head \[2J"
    assert f"| {shown} | {shown} |" in body
    assert f"- Source: {shown}" in body
    assert r"- Command: `a \| b`" in body
    assert card.is_written(text)


def test_a_single_backquote_starts_no_code():
    assert card._escaped("a ` <b>") == r"a ' \<b\>"


def test_paths_of_this_machine_are_not_published(tmp_path):
    provenance = {"command": PATHS, "training": f"{Path.home()}/x and B/16, a/b, 1/2"}
    write_folder(
        drawn_model(),
        tmp_path / "new",
        metrics={"log": "/var/log/x.csv"},
        provenance=provenance,
    )
    for path in (tmp_path / "new").iterdir():
        if path.suffix != ".h5":
            text = path.read_text()
            for part in ("home", "Users", "secret", "runs", "mnt", "/var", "tmp"):
                assert part not in text, path
    metadata = json.loads((tmp_path / "new" / "metadata.json").read_text())
    assert metadata["provenance"] == {
        "command": "train.py on data.zip, a, b",
        "training": "x and B/16, a/b, 1/2",
    }


def test_addresses_of_the_web_stay():
    text = "https://example.org:80/a/b?c=/d (see hf://owner/name)"
    assert card.without_paths(text).startswith("https://example.org:80/a/b")
    assert "hf://owner/name" in card.without_paths(text)


def test_a_card_needs_the_name_of_a_repository():
    with pytest.raises(ValueError, match="owner/name"):
        card.write_card(drawn_model(), repo_id="a/b](javascript:x)")
