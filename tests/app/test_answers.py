"""What the demo computes and refuses, without a page: no Gradio is needed."""

import asyncio
import io
import json
import os
import time
import zlib

import keras
import numpy as np
import pytest

import keras_mixer
from keras_mixer.app import Limits
from keras_mixer.app.answers import (
    as_csv,
    classify,
    columns,
    evidence_picture,
    filters_picture,
    table,
)
from keras_mixer.app.drawings import DRAWINGS, draw, write_drawings
from keras_mixer.app.guard import Guard, remove_old
from keras_mixer.app.server import serve
from keras_mixer.app.shelf import EMBEDDED, Shelf
from keras_mixer.app.uploads import read_picture
from keras_mixer.cli.main import main, parser

image = pytest.importorskip("PIL.Image", reason="needs the extra app")

pytestmark = pytest.mark.backend_free
LIMITS = Limits()


@pytest.fixture(scope="module")
def model():
    return Shelf(EMBEDDED, any_source=True).get(EMBEDDED, "float32")


def test_the_drawings_are_what_the_model_takes_them_for(model, tmp_path):
    paths = write_drawings(tmp_path)
    results = classify(model, list(paths.values()), LIMITS)
    assert [result.classes[0][1] for result in results] == list(DRAWINGS)
    assert min(result.classes[0][2] for result in results) > 0.5
    np.testing.assert_array_equal(draw("ship"), draw("ship"))


def test_classes_are_those_of_predict(model, tmp_path):
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{i}.png" for i in range(18)]  # more than a batch
    for path in paths:
        pixels = rng.integers(0, 256, (40, 60, 3), "uint8")
        image.fromarray(pixels).save(path)
    pixels = keras_mixer.preprocess(paths, model)
    expected = keras_mixer.decode_predictions(
        model.predict(pixels, verbose=0), model, 10
    )
    for result, best in zip(classify(model, paths, LIMITS), expected, strict=True):
        assert [name for _, name, _ in result.classes] == [b.name for b in best]
        assert [str(number) for number, _, _ in result.classes] == [
            b.class_id for b in best
        ]
        scores = [score for _, _, score in result.classes]
        np.testing.assert_allclose(scores, [b.score for b in best], atol=1e-5)


def test_a_bad_file_is_a_row_of_the_table(model, tmp_path):
    good, bad = tmp_path / "=good.png", tmp_path / "bad.jpg"
    draw("horse").save(good)
    bad.write_bytes(b"hello")
    rows = table(classify(model, [bad, good], LIMITS))
    assert rows[0][:2] == ["bad.jpg", ""] and "no picture" in rows[0][-1]
    assert rows[1][:2] == ["=good.png", "horse"] and rows[1][-1] == ""
    lines = as_csv(rows).splitlines()
    assert lines[0] == ",".join(columns())
    assert lines[2].startswith("'=good.png,horse,0.")


def bomb(edge):
    def chunk(kind, data):
        crc = zlib.crc32(kind + data).to_bytes(4)
        return len(data).to_bytes(4) + kind + data + crc

    head = edge.to_bytes(4) * 2 + b"\x08\x02\0\0\0"
    rows = chunk(b"IDAT", zlib.compress(bytes(10_000_000)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + rows + chunk(b"IEND", b"")


def jpeg():
    file = io.BytesIO()
    draw("ship").save(file, "jpeg")
    return file.getvalue()


BAD = {
    "empty": (b"", "the file is empty"),
    "text": (b"hello", "no picture. Expected a JPEG"),
    "half": (jpeg()[:2000], "no picture"),
    "script": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no picture"),
    "bomb": (bomb(20000), "too many pixels, at most 50,000,000"),
    "smaller bomb": (bomb(10000), "10000 x 10000 pixels, at most 50,000,000"),
    "large": (bytes(3000), "at most 0 are taken"),
}


@pytest.mark.parametrize("content, match", BAD.values(), ids=BAD)
def test_a_bad_file_is_named_with_what_is_wrong(content, match, tmp_path):
    path = tmp_path / "a\x1b[31m.png"
    path.write_bytes(content)
    limits = Limits(picture_bytes=2500) if "at most 0" in match else LIMITS
    picture = read_picture(path, limits)
    assert picture.pixels is None
    assert picture.problem.startswith("a\\x1b[31m.png: ") and match in picture.problem


def test_too_many_pictures_and_none(model, tmp_path):
    with pytest.raises(ValueError, match="no picture yet"):
        classify(model, [], LIMITS)
    with pytest.raises(ValueError, match="At most 2 pictures at once. Received: 3"):
        classify(model, [tmp_path] * 3, Limits(pictures=2))
    with pytest.raises(ValueError, match="`queue` must be a positive integer"):
        Limits(queue=0)


def test_evidence_and_filters_are_pictures(model, tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "ship.png"
    draw("ship").save(path)
    maps = [
        np.asarray(evidence_picture(model, path, index, "exact", LIMITS), "int16")
        for index in (None, 8, 3)
    ]
    np.testing.assert_array_equal(maps[0], maps[1])  # 8 is the ship, the best one
    assert np.abs(maps[0] - maps[2]).mean() > 1
    first, last = (np.asarray(filters_picture(model, b), "int16") for b in (0, 7))
    assert first.shape[2] == 3 and first.std() > 10
    assert first.shape != last.shape or np.abs(first - last).mean() > 1
    with pytest.raises(ValueError, match=r"\[0, 10\)"):
        evidence_picture(model, path, 10, "exact", LIMITS)
    with pytest.raises(ValueError, match="`block` must be"):
        filters_picture(model, 8)


def test_occlusion_that_takes_too_long_is_refused(model, tmp_path, monkeypatch):
    path = tmp_path / "ship.png"
    draw("ship").save(path)
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    with pytest.raises(TimeoutError, match="65 passes, about 650 seconds"):
        evidence_picture(model, path, None, "occlusion", LIMITS)


def test_the_shelf_keeps_two_models_and_refuses_others(tmp_path):
    shelf = Shelf(EMBEDDED, any_source=True)
    first = shelf.get(EMBEDDED, "float32")
    half = shelf.get(EMBEDDED, "bfloat16")
    assert half.get_layer("block_0").compute_dtype == "bfloat16"
    assert shelf.get(EMBEDDED, "float32") is first
    logits = keras_mixer.MixerTi4(weights="cifar10", classifier_activation=None)
    logits.save(tmp_path / "logits.keras")
    again = shelf.get(str(tmp_path / "logits.keras"), "float32")
    pixels = keras_mixer.preprocess(draw("ship"), first)
    np.testing.assert_allclose(
        keras.ops.convert_to_numpy(again(pixels)),
        keras.ops.convert_to_numpy(first(pixels)),
        atol=1e-5,
    )
    assert shelf.get(EMBEDDED, "bfloat16") is not half
    for source, match in {
        "": "Choose a model of the list",
        "/nowhere.npz": "or the path of a file",
        "hf://one": "hf://owner/name",
    }.items():
        with pytest.raises(ValueError, match=match):
            shelf.get(source, "float32")
    with pytest.raises(ValueError, match="precision must be one of float32"):
        shelf.get(EMBEDDED, "int8")
    features = keras_mixer.MixerTi4(num_classes=0)
    features.save(tmp_path / "features.keras")
    with pytest.raises(ValueError, match="has no classes"):
        shelf.get(str(tmp_path / "features.keras"), "float32")


def test_strangers_choose_named_models_alone(tmp_path):
    shelf = Shelf(EMBEDDED, any_source=False)
    path = tmp_path / "there.keras"
    path.touch()
    for source in (str(path), "hf://owner/name"):
        with pytest.raises(ValueError, match="takes no other"):
            shelf.get(source, "float32")


def test_a_port_that_is_taken_is_named(tmp_path):
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"127.0.0.1, port {port}: Address already"):
            serve(port=port)
    with pytest.raises(OSError, match="`host` must be an address"):
        serve(host="nowhere.invalid", port=0)
    with pytest.raises(ValueError, match="`precision` must be one of"):
        serve(precision="int8")


def test_the_command_line(capsys):
    options = parser().parse_args(["app", "--port", "0", "--precision", "bfloat16"])
    assert (options.host, options.port) == ("127.0.0.1", 0)
    assert main(["app", "--weights", "none"]) == 2
    assert "--weights must name weights" in capsys.readouterr().err
    assert main(["app", "--model", "nowhere.keras"]) == 1
    assert "no file 'nowhere.keras'" in capsys.readouterr().err


# --- the guard --------------------------------------------------------------------


def call(guard, path, *parts, headers=(), wait=0.0):
    """Send a request in parts; return the status and the body of the answer."""
    sent = []
    messages = [
        {"type": "http.request", "body": part, "more_body": i < len(parts) - 1}
        for i, part in enumerate(parts)
    ]

    async def receive():
        if wait:
            await asyncio.sleep(wait)
        return messages.pop(0) if messages else {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "path": path, "headers": list(headers)}
    asyncio.run(guard(scope, receive, send))
    body = b"".join(message.get("body", b"") for message in sent[1:])
    return sent[0]["status"], body.decode(), dict(sent[0]["headers"])


async def echo(scope, receive, send):
    """Answer with the body of the request; fail on "boom"."""
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    if body == b'"boom"':
        raise RuntimeError
    status = 500 if body == b'"500"' else 200
    await send({"type": "http.response.start", "status": status, "headers": []})
    page = b'<link rel="preconnect" href="https://fonts.example/"><p>' + body
    await send({"type": "http.response.body", "body": page})


async def own_error(scope, receive, send):
    """Answer 500 to every error, as Starlette does where a form is read."""
    try:
        await echo(scope, receive, send)
    except Exception:
        await send({"type": "http.response.start", "status": 500, "headers": []})


def test_the_guard_says_what_was_wrong_with_the_body(tmp_path):
    limits = Limits(request_bytes=50, stored_bytes=150, seconds=1)
    guard = Guard(own_error, tmp_path, limits)
    status, body, _ = call(guard, "/upload", bytes(30), bytes(30))
    assert status == 413 and "too large" in body
    status, body, _ = call(guard, "/upload", bytes(30), wait=2)
    assert status == 408 and "in time" in body


def test_the_guard(tmp_path):
    inside = tmp_path / "a.png"
    inside.write_bytes(bytes(100))
    guard = Guard(echo, tmp_path, Limits(request_bytes=50, stored_bytes=150, seconds=1))
    status, body, headers = call(guard, "/", b"")
    assert (status, body) == (200, "<p>")  # the page asks no other host
    assert b"default-src 'self'" in headers[b"content-security-policy"]
    assert call(guard, "/join", b'["', b'x"]')[:2][1].endswith('["x"]')
    for content, match in {
        b"{": "not JSON",
        b"[" * 10**5: "not JSON",
        b'"boom"': "not understand",
        b'"500"': "not understand",
        json.dumps({"data": [[{"path": "/etc/passwd"}]]}).encode(): "not uploaded",
        json.dumps({"path": f"{tmp_path}/../x"}).encode(): "not uploaded",
        json.dumps({"path": "http://127.0.0.1/x.png"}).encode(): "not uploaded",
        json.dumps({"path": None}).encode(): "not uploaded",
        json.dumps({"path": f"{inside}\0"}).encode(): "not uploaded",
    }.items():
        status, body, _ = call(guard, "/join", content)
        assert status == 400 and match in body, content[:40]
    known = json.dumps({"path": str(inside)}).encode()
    assert call(guard, "/join", known)[0] == 200
    assert call(guard, "/join", bytes(2**20), b"x")[0] == 413
    assert call(guard, "/upload", bytes(30), bytes(30))[0] == 413
    assert call(guard, "/upload", b"", headers=[(b"content-length", b"51")])[0] == 413
    assert call(guard, "/upload", b"", headers=[(b"content-length", b"x")])[0] == 400
    assert call(guard, "/upload", b"x")[0] == 200
    assert call(guard, "/upload", b"x", wait=1.5)[0] == 408
    (tmp_path / "b.png").write_bytes(bytes(100))
    status, body, headers = call(guard, "/upload", b"x")
    assert status == 503 and "too many pictures" in body
    assert headers[b"retry-after"] == b"10"
    guard = Guard(echo, tmp_path, Limits(uploads=1))
    guard.arriving = 1
    assert call(guard, "/upload", b"x")[0] == 503
    assert guard.arriving == 1


def test_old_uploads_are_removed(tmp_path):
    (tmp_path / "x").mkdir()
    paths = [tmp_path / "x" / name for name in ("old", "kept", "new")]
    for path in paths:
        path.write_bytes(bytes(10))
    for path in paths[:2]:
        os.utime(path, (time.time() - 100, time.time() - 100))
    assert remove_old(tmp_path, 50, frozenset(paths[1:2])) == 20
    assert [path.name for path in paths if path.exists()] == ["kept", "new"]
