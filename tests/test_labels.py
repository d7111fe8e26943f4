"""Names of classes: the order of predictions, ImageNet's lists, and every error."""

import hashlib
import json
import shutil
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import keras
import numpy as np
import pytest

from keras_mixer import labels as labels_module
from keras_mixer.labels import (
    CIFAR10_LABELS,
    Prediction,
    decode_predictions,
    label_names,
)


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Serve made-up label lists on loopback; return the folder, cache and stop."""
    folder, cache = tmp_path / "served", tmp_path / "keras"
    folder.mkdir()
    index = {str(i): [f"n{i:08}", f"one_{i}"] for i in range(1000)}
    (folder / "imagenet_class_index.json").write_text(json.dumps(index))
    ids, lemmas = (
        "".join(line.format(i) + "\n" for i in range(21843))
        for line in ("n{:08}", "thing {}, object")
    )
    (folder / "imagenet21k_wordnet_ids.txt").write_text(ids)
    (folder / "imagenet21k_wordnet_lemmas.txt").write_text(lemmas)
    for path in folder.iterdir():
        lines = "".join(f"{line}\n" for line in path.read_text().splitlines())
        digest = hashlib.sha256(lines.encode()).hexdigest()
        monkeypatch.setitem(labels_module.SHA256, path.name, digest)

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    handler = partial(Handler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, args=(0.01,))
        thread.start()

        def stop():
            httpd.shutdown()
            thread.join()
            httpd.server_close()

        address = f"http://127.0.0.1:{httpd.server_port}"
        monkeypatch.setenv("KERAS_HOME", str(cache))
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        monkeypatch.setattr(labels_module, "IMAGENET21K_ADDRESS", address)
        monkeypatch.setattr(
            labels_module, "IMAGENET1K_ADDRESS", f"{address}/imagenet_class_index.json"
        )
        yield SimpleNamespace(folder=folder, cache=cache / "keras_mixer", stop=stop)
        if thread.is_alive():
            stop()


def test_the_best_classes_come_first():
    scores = [[0.1, 0.6, 0.3], [0.5, 0.2, 0.5]]
    assert decode_predictions(np.array(scores), ["cat", "dog", "owl"], top=2) == [
        [
            Prediction("1", "dog", pytest.approx(0.6)),
            Prediction("2", "owl", pytest.approx(0.3)),
        ],
        [Prediction("0", "cat", 0.5), Prediction("2", "owl", 0.5)],
    ]


def test_of_equal_scores_the_first_class_wins():
    (best,) = decode_predictions(np.arange(200)[None] % 2, range(200), top=3)
    assert [prediction.class_id for prediction in best] == ["1", "3", "5"]


def test_top_is_at_most_the_number_of_classes():
    (best,) = decode_predictions(np.array([[1.0, 2.0]]), ("a", "b"), top=5)
    assert [prediction.name for prediction in best] == ["b", "a"]
    assert isinstance(best[0].score, float)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_predictions_may_be_tensors(dtype):
    tensor = keras.ops.convert_to_tensor([[0.5, 2.0, 1.0]], dtype=dtype)
    (best,) = decode_predictions(tensor, ["a", "b", "c"])
    assert [tuple(p) for p in best] == [("1", "b", 2), ("2", "c", 1), ("0", "a", 0.5)]


def test_cifar10_labels_are_in_the_order_of_the_data_set():
    assert CIFAR10_LABELS[0] == "airplane"
    assert CIFAR10_LABELS[9] == "truck"
    (best,) = decode_predictions(np.eye(10)[3:4], "cifar10", top=1)
    assert best == [Prediction("3", "cat", 1.0)]


def test_imagenet1k_names_are_downloaded_once(server):
    scores = np.zeros((1, 1000))
    scores[0, 388] = 0.9
    expected = Prediction("n00000388", "one_388", pytest.approx(0.9))
    assert decode_predictions(scores)[0][0] == expected
    server.stop()
    assert decode_predictions(scores, "imagenet1k")[0][0] == expected


def test_imagenet21k_names_are_downloaded_once(server):
    scores = np.zeros((1, 21843))
    scores[0, 21842] = 0.9
    expected = Prediction("n00021842", "thing 21842, object", pytest.approx(0.9))
    assert decode_predictions(scores)[0][0] == expected
    server.stop()
    assert decode_predictions(scores, "imagenet21k")[0][0] == expected
    assert len(list(server.cache.iterdir())) == 2


@pytest.mark.parametrize("labels", ["imagenet1k", "imagenet21k"])
def test_without_a_connection_the_file_can_be_put_by_hand(server, labels):
    server.stop()
    num_classes = {"imagenet1k": 1000, "imagenet21k": 21843}[labels]
    with pytest.raises(ConnectionError, match=r"http://127.*put it at ") as caught:
        label_names(labels, num_classes)
    assert str(server.cache) in str(caught.value)
    assert caught.value.__cause__ is not None

    shutil.copytree(server.folder, server.cache, dirs_exist_ok=True)
    assert len(label_names(labels, num_classes)) == num_classes


def test_a_list_that_is_not_there_is_named(server):
    (server.folder / "imagenet21k_wordnet_lemmas.txt").unlink()
    with pytest.raises(ConnectionError, match=r"lemmas\.txt.*404.*put it at"):
        label_names("imagenet21k", 21843)
    assert not (server.cache / "imagenet21k_wordnet_lemmas.txt").exists()


LISTS = [
    ("imagenet1k", "imagenet_class_index.json"),
    ("imagenet21k", "imagenet21k_wordnet_ids.txt"),
    ("imagenet21k", "imagenet21k_wordnet_lemmas.txt"),
]
NUM_CLASSES = {"imagenet1k": 1000, "imagenet21k": 21843}


@pytest.mark.parametrize("labels, name", LISTS)
@pytest.mark.parametrize("damage", ["truncated", "binary", "page", "empty", "letter"])
def test_another_list_is_refused_and_stays(server, labels, name, damage):
    content = (server.folder / name).read_bytes()
    server.cache.mkdir(parents=True)
    path = server.cache / name
    path.write_bytes(
        {
            "truncated": content[: len(content) // 2],
            "binary": b"\xff\xfe" + content,
            "page": b"<html>Please log in</html>",
            "empty": b"",
            "letter": content.replace(
                b"object" if b"obj" in content else b"1", b"x", 1
            ),
        }[damage]
    )
    found = path.read_bytes()
    with pytest.raises(OSError, match=rf"{name} is not .* Delete it.*http://127"):
        label_names(labels, NUM_CLASSES[labels])
    assert path.read_bytes() == found
    path.unlink()  # as the message says
    assert len(label_names(labels, NUM_CLASSES[labels])) == NUM_CLASSES[labels]


@pytest.mark.parametrize("labels, name", LISTS)
def test_other_line_ends_are_the_same_list(server, labels, name):
    shutil.copytree(server.folder, server.cache)
    expected = label_names(labels, NUM_CLASSES[labels])
    path = server.cache / name
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n").removesuffix(b"\r\n"))
    assert label_names(labels, NUM_CLASSES[labels]) == expected


def test_a_wrong_list_of_the_server_is_not_used(server):
    (server.folder / "imagenet_class_index.json").write_text("{}")
    with pytest.raises(OSError, match="is not the published one: the sha256"):
        label_names("imagenet1k", 1000)


@pytest.mark.parametrize("labels", NUM_CLASSES)
def test_offline_nothing_is_asked_for(server, labels, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ConnectionError, match="HF_HUB_OFFLINE forbids.*put it at"):
        label_names(labels, NUM_CLASSES[labels])
    assert not server.cache.exists()
    shutil.copytree(server.folder, server.cache)
    assert len(label_names(labels, NUM_CLASSES[labels])) == NUM_CLASSES[labels]


def test_names_cannot_steer_a_terminal():
    names = ["\x1b[2Jcat", "a\nb\tc", "caf\xe9 \u732b", "\u202egod"]
    ranked = decode_predictions(np.array([[4.0, 3.0, 2.0, 1.0]]), names)[0]
    assert [prediction.name for prediction in ranked] == [
        r"\x1b[2Jcat",
        r"a\nb\tc",
        "caf\xe9 \u732b",
        r"\u202egod",
    ]


@pytest.mark.parametrize("num_classes", [10, 11221, 1001])
def test_labels_are_not_guessed(num_classes):
    with pytest.raises(ValueError, match=f"`labels` .*{num_classes} classes. Pass"):
        decode_predictions(np.zeros((1, num_classes)))


def test_labels_that_do_not_fit_are_refused(server):
    with pytest.raises(ValueError, match="Received: 2 names for 3 classes"):
        decode_predictions(np.zeros((1, 3)), ["a", "b"])
    with pytest.raises(ValueError, match="Received: 10 names for 3 classes"):
        decode_predictions(np.zeros((1, 3)), "cifar10")
    with pytest.raises(ValueError, match="Received: 1000 names for 21843 classes"):
        label_names("imagenet1k", 21843)
    message = "`labels` must be one name per class, or one of .imagenet1k., "
    with pytest.raises(ValueError, match=message):
        decode_predictions(np.zeros((1, 3)), "cats")


@pytest.mark.parametrize("shape", [(3,), (1, 1, 3), ()])
def test_predictions_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"`predictions` .* Received: shape="):
        decode_predictions(np.zeros(shape), ["a", "b", "c"])


@pytest.mark.parametrize("top", [0, -1, 2.5, True, None])
def test_top_must_be_a_positive_integer(top):
    with pytest.raises(ValueError, match="`top` must be a positive integer. Received"):
        decode_predictions(np.zeros((1, 3)), ["a", "b", "c"], top=top)
