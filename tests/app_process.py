"""The demo in a process of its own, and how to talk to it over HTTP."""

import contextlib
import http.client
import json
import os
import re
import subprocess
import sys
import time
import uuid
from pathlib import Path

ROOT = Path(__file__).parents[1]


@contextlib.contextmanager
def running(folder, *words, command=None, **environment):
    """Start `keras-mixer app`; give the process, with `.port` and `.log`."""
    folder.mkdir(exist_ok=True)
    scratch = folder / "tmp"
    scratch.mkdir()
    log = folder / "log"
    program = [sys.executable, "-m", "keras_mixer", "app", "--port", "0", *words]
    with open(log, "wb") as file:
        process = subprocess.Popen(
            command or program,
            stdout=file,
            stderr=file,
            cwd=folder,
            env=os.environ
            | {"PYTHONPATH": str(ROOT), "TMPDIR": str(scratch)}
            | environment,
        )
    process.log, process.scratch = log, scratch
    try:
        process.port = port_of(process)
        yield process
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def port_of(process):
    end = time.monotonic() + 240
    while time.monotonic() < end:
        text = process.log.read_text()
        if found := re.search(r"http://[\w.]+:(\d+)", text):
            port = int(found[1])
            with contextlib.suppress(OSError):
                if request(port, "GET", "/").status == 200:
                    return port
        assert process.poll() is None, text
        time.sleep(0.2)
    raise AssertionError(process.log.read_text())


class Answer:
    """A status, headers, and a body as bytes."""

    def __init__(self, response):
        self.status, self.headers = response.status, response.headers
        self.body = response.read()

    @property
    def text(self):
        return self.body.decode(errors="replace")


def request(port, method, path, body=None, headers=None, timeout=120):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        connection.request(method, path, body, headers or {})
        return Answer(connection.getresponse())
    finally:
        connection.close()


def upload(port, name, content):
    """Upload a file as the page does."""
    edge = uuid.uuid4().hex
    head = f'Content-Disposition: form-data; name="files"; filename="{name}"'
    body = f"--{edge}\r\n{head}\r\nContent-Type: image/png\r\n\r\n".encode()
    body += content + f"\r\n--{edge}--\r\n".encode()
    headers = {"Content-Type": f"multipart/form-data; boundary={edge}"}
    return request(port, "POST", "/gradio_api/upload", body, headers)


def file_data(path):
    return {"path": path, "meta": {"_type": "gradio.FileData"}}


def functions(port):
    """Return name -> number of what the page can ask for."""
    config = json.loads(request(port, "GET", "/config").body)
    return {d["api_name"]: d["id"] for d in config["dependencies"] if d["api_name"]}


def ask(port, function, *data, session=None):
    """Ask as the page does; return the status, and the outputs or the error."""
    session = session or uuid.uuid4().hex
    body = {"data": data, "fn_index": function, "session_hash": session}
    joined = request(
        port,
        "POST",
        "/gradio_api/queue/join",
        json.dumps(body),
        {"Content-Type": "application/json"},
    )
    if joined.status != 200:
        return joined.status, joined.text
    answer = request(port, "GET", f"/gradio_api/queue/data?session_hash={session}")
    for line in answer.text.splitlines():
        if line.startswith("data: "):
            message = json.loads(line.removeprefix("data: "))
            if message["msg"] == "process_completed":
                output = message["output"]
                return answer.status, output.get("data") or output["error"]
    return answer.status, answer.text
