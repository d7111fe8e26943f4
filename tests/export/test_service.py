"""`examples/serve_fastapi.py` over HTTP: answers, refusals, many requests at once."""

import http.client
import io
import json
import os
import socket
import subprocess
import sys
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import keras_mixer

pytest.importorskip("fastapi", reason="needs the extra serve")
pytest.importorskip("uvicorn", reason="needs the extra serve")
pytest.importorskip("onnxruntime", reason="needs the extra export")
image = pytest.importorskip("PIL.Image", reason="needs the extra serve")

pytestmark = pytest.mark.backend_free
SCRIPT = Path(__file__).parents[2] / "examples" / "serve_fastapi.py"
JPEG = {"Content-Type": "image/jpeg"}


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    """The model that is served, and the port."""
    folder = tmp_path_factory.mktemp("service")
    model = keras_mixer.MixerTi4(weights="cifar10")
    keras_mixer.export.export(model, folder / "mixer.onnx")
    keras_mixer.hub.write_folder(model, folder / "model", repo_id="owner/name")
    port = free_port()
    files = [str(folder / "mixer.onnx"), str(folder / "model")]
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(
            [sys.executable, str(SCRIPT), *files, str(port)],
            stdout=log,
            stderr=log,
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(SCRIPT.parents[1])},
        )
    try:
        wait_for(port, process, folder / "log")
        yield model, port
    finally:
        process.terminate()
        process.wait(30)


def wait_for(port, process, log):
    end = time.monotonic() + 180
    while time.monotonic() < end:
        assert process.poll() is None, log.read_text()
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.2)
    pytest.fail(log.read_text())


def post(port, body, headers=JPEG, path="/classify"):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        connection.request("POST", path, body, headers)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def picture(seed=0, form="png", **options):
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 60, 3), "uint8")
    file = io.BytesIO()
    image.fromarray(pixels).save(file, form, **options)
    return file.getvalue()


def test_classes_are_those_of_the_model(service):
    model, port = service
    status, answer = post(port, picture())
    assert status == 200
    pixels = keras_mixer.preprocess(image.open(io.BytesIO(picture())), model)
    (expected,) = keras_mixer.decode_predictions(model.predict(pixels), model)
    assert [c["class"] for c in answer["classes"]] == [c.name for c in expected]
    np.testing.assert_allclose(
        [c["probability"] for c in answer["classes"]],
        [c.score for c in expected],
        atol=1e-5,
    )


def bomb():
    """A PNG of 60 KB that says it has 400 million pixels."""

    def chunk(kind, data):
        crc = zlib.crc32(kind + data).to_bytes(4)
        return len(data).to_bytes(4) + kind + data + crc

    size = (20000).to_bytes(4)
    head = chunk(b"IHDR", size + size + b"\x08\x02\0\0\0")
    rows = zlib.compress(bytes(20_000_000))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


WRONG = {
    "nothing": (b"", JPEG, 400, "no picture"),
    "text": (b"hello", JPEG, 400, "no picture"),
    "half a picture": (picture(form="jpeg")[:900], JPEG, 400, "no picture"),
    "no type": (picture(), {}, 415, "Content-Type"),
    "another type": (picture(), {"Content-Type": "text/plain"}, 415, "Content-Type"),
    "too many bytes": (bytes(10_000_001), JPEG, 413, "10,000,000 bytes"),
    "too many pixels": (bomb(), JPEG, (400, 413), "pic|pixels"),
}


@pytest.mark.parametrize("body, headers, status, match", WRONG.values(), ids=WRONG)
def test_a_bad_request_gets_a_sentence(service, body, headers, status, match):
    found, answer = post(service[1], body, headers)
    assert found in (status if isinstance(status, tuple) else (status,))
    assert any(word in answer["detail"] for word in match.split("|"))
    assert answer["detail"].endswith(".")
    assert post(service[1], picture())[0] == 200


def test_other_addresses_are_refused(service):
    assert post(service[1], picture(), path="/other")[0] == 404
    assert post(service[1], picture(), path="/../../etc/passwd")[0] == 404


def test_200_requests_at_once(service):
    bodies = [picture(seed) for seed in range(8)]
    alone = [post(service[1], body)[1] for body in bodies]
    with ThreadPoolExecutor(200) as threads:
        answers = list(
            threads.map(lambda i: post(service[1], bodies[i % 8]), range(200))
        )
    statuses = [status for status, _ in answers]
    assert set(statuses) <= {200, 503} and statuses.count(200) >= 32
    for i, (status, answer) in enumerate(answers):
        if status == 200:
            assert answer == alone[i % 8]
        else:
            assert "Too many requests" in answer["detail"]
    assert post(service[1], bodies[0]) == (200, alone[0])
