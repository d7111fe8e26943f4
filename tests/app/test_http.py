"""The demo over HTTP: its answers, its refusals, many requests, and what it leaves."""

import io
import json
import re
from concurrent.futures import ThreadPoolExecutor

import pytest
from app_process import ask, file_data, functions, request, running, upload

from keras_mixer.app.drawings import draw

pytest.importorskip("gradio", reason="needs the extra app")
pytestmark = pytest.mark.backend_free
MODEL = ("MixerTi4:cifar10", "float32")
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    with running(tmp_path_factory.mktemp("demo") / "run") as process:
        process.functions = functions(process.port)
        yield process
    # Whoever ends it finds nothing of it.
    assert list(process.scratch.glob("keras-mixer-app-*")) == []
    assert {path.name for path in process.scratch.parent.iterdir()} == {"log", "tmp"}


def picture(name="ship"):
    file = io.BytesIO()
    draw(name).save(file, "png")
    return file.getvalue()


def uploaded(demo, name, content):
    answer = upload(demo.port, name, content)
    assert answer.status == 200, answer.text
    return json.loads(answer.body)[0]


def test_the_page_asks_no_other_host(demo):
    answer = request(demo.port, "GET", "/")
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    own = f"http://127.0.0.1:{demo.port}"
    foreign = {
        url
        for url in re.findall(r"https?://[^\s\"'<>\\]+", answer.text)
        if not url.startswith(own)
    }
    # Gradio's text about its interface; nothing fetches it.
    assert all("/gradio/" in url and "test_files/" in url for url in foreign), foreign
    assert '"analytics_enabled":false' in answer.text.replace(" ", "")
    styles = request(demo.port, "GET", "/theme.css").text
    assert "http" not in re.sub(r"http://www\.w3\.org", "", styles)


def test_a_picture_is_classified(demo):
    path = uploaded(demo, "ship.png", picture())
    status, data = ask(demo.port, demo.functions["classify"], [file_data(path)], *MODEL)
    assert status == 200
    assert data[2]["value"]["data"][0][:2] == ["ship.png", "ship"]


def test_an_upload_stays_in_its_folder(demo):
    path = uploaded(demo, "../../../evil.png", picture())
    assert str(demo.scratch) in path and path.endswith("/evil.png")
    assert not list(demo.scratch.glob("*.png"))


def test_bad_requests_get_a_sentence(demo):
    classify = demo.functions["classify"]
    bad = uploaded(demo, "bad.png", b"hello")
    for files, match in {
        (bad,): "bad.png: it is no picture. Expected a JPEG",
        (): "There is no picture yet",
        (bad,) * 65: "At most 64 pictures at once",
    }.items():
        status, error = ask(demo.port, classify, list(map(file_data, files)), *MODEL)
        assert status == 200 and match in error
    for wrong in ("/etc/passwd", "http://127.0.0.1:1/a.png", f"{bad}/../../../x"):
        status, text = ask(demo.port, classify, [file_data(wrong)], *MODEL)
        assert status == 400 and "not uploaded" in text
    answer = request(demo.port, "POST", "/gradio_api/queue/join", "{", JSON)
    assert answer.status == 400 and "not JSON" in answer.text
    answer = request(demo.port, "POST", "/gradio_api/queue/join", b" " * 2**21, JSON)
    assert answer.status == 413 and "too large" in answer.text
    answer = upload(demo.port, "large.png", bytes(21 * 2**20))
    assert answer.status == 413
    for method, path in (
        ("GET", "/gradio_api/file=/etc/passwd"),
        ("GET", "/static/../../../../etc/passwd"),
        ("GET", "/nothing"),
        ("POST", "/gradio_api/upload"),
        ("PUT", "/"),
    ):
        answer = request(demo.port, method, path)
        assert 400 <= answer.status < 500, (method, path, answer.status)


def test_200_requests_at_once(demo):
    path = uploaded(demo, "horse.png", picture("horse"))

    def one(_):
        return ask(demo.port, demo.functions["classify"], [file_data(path)], *MODEL)

    with ThreadPoolExecutor(200) as threads:
        answers = list(threads.map(one, range(200)))
    right = [
        status == 200 and data[2]["value"]["data"][0][1] == "horse"
        for status, data in answers
        if status == 200 and isinstance(data, list)
    ]
    assert right and all(right)
    # The others were told that too many wait.
    others = [answer for answer in answers if not isinstance(answer[1], list)]
    assert all("full" in str(text).lower() for _, text in others), others[:3]
    assert one(0)[0] == 200
