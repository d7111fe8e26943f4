"""A Hugging Face Hub on loopback: the part of its protocol that our code meets.

    with Hub(folder, {"hf_alice": "alice"}) as hub:
        hub.commit("alice/mixer", {"config.json": b"{}", "model.weights.h5": path})
        hub.fault("/storage/", "drop", 4096)    # the next download breaks there
        subprocess.run([...], env={**os.environ, **hub.environment(home, "hf_alice")})
        assert hub.log[-1]["range"] == "bytes=0-"

Weights come from a second port under another host name, because the client treats the
Hub's storage hosts as foreign. The client reads its endpoint once, when it is imported:
it runs in a subprocess. Models and Spaces, and neither Xet nor pull requests.
"""

import base64
import hashlib
import json
import re
import shutil
import socket
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote, urlsplit

LFS_ENDINGS = (".h5", ".safetensors", ".npz")
NO_PROXY = "127.0.0.1,localhost"

_CHUNK = 1 << 16


@dataclass
class File:
    size: int
    sha256: str
    git_sha1: str
    lfs: bool

    @property
    def etag(self):
        return self.sha256 if self.lfs else self.git_sha1


@dataclass
class Repository:
    name: str
    private: bool = False
    gated: bool = False
    branches: dict = field(default_factory=dict)
    tags: dict = field(default_factory=dict)
    commits: dict = field(default_factory=dict)  # id -> {path: File}
    titles: dict = field(default_factory=dict)  # id -> title

    @property
    def owner(self):
        return self.name.split("/")[0]


class Refusal(Exception):
    """An answer that is an error."""

    def __init__(self, status, message, code=None, **headers):
        super().__init__(message)
        self.status, self.headers = status, headers | {"X-Error-Message": message}
        if code:
            self.headers["X-Error-Code"] = code


class Hub:
    """The repositories, what was asked for, and the faults to come.

    Args:
        folder: Where the contents of the files lie, by their sha256.
        tokens: Token -> the user it belongs to.
    """

    def __init__(self, folder, tokens=None):
        self.folder, self.tokens = Path(folder), dict(tokens or {})
        self.folder.mkdir(parents=True, exist_ok=True)
        self.repositories, self.log, self._faults = {}, [], []
        self.lock = threading.RLock()
        self._servers = [
            ThreadingHTTPServer(("127.0.0.1", 0), _Handler) for _ in range(2)
        ]
        for server in self._servers:
            server.hub = self
            server.handle_error = lambda *_: None  # a client that went away
        api, storage = (server.server_port for server in self._servers)
        self.url = f"http://127.0.0.1:{api}"
        self.storage_url = f"http://localhost:{storage}"

    def __enter__(self):
        for server in self._servers:
            threading.Thread(
                target=server.serve_forever, args=(0.05,), daemon=True
            ).start()
        return self

    def __exit__(self, *_):
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def environment(self, home, token=None):
        """Return the variables that make a process a client of this Hub alone."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": NO_PROXY,
        } | ({"HF_TOKEN": token} if token else {})

    def fault(self, path_regex, kind, value=None, times=1, method=None):
        """Spoil the next `times` requests whose path matches.

        `kind` and `value`: `status` (the code), `drop` (the connection, after so many
        bytes of the body; 0 for no answer at all), `truncate` (a whole answer of so
        many bytes), `stall` (seconds before the body), `corrupt` (as many bytes, the
        first ones wrong), `slow` (bytes in a second), `call` (a function, before the
        request is served).
        """
        kinds = ("status", "drop", "truncate", "stall", "corrupt", "slow", "call")
        assert kind in kinds, kind
        self._faults.append([path_regex, method, times, kind, value])

    def no_faults(self):
        """Forget the faults that have not happened."""
        self._faults.clear()

    def create(self, name, *, private=False, gated=False):
        """Make an empty repository."""
        self.repositories[name] = Repository(name, private, gated)
        return self.add_commit(self.repositories[name], "main", {}, "initial commit")

    def commit(self, name, files, *, branch="main", title="", **kind):
        """Put files (path -> bytes, or the path of a file) on a branch; the commit."""
        if name not in self.repositories:
            self.create(name, **kind)
        repository = self.repositories[name]
        start = repository.branches.get(branch, repository.branches["main"])
        new = {path: self.store(content, path) for path, content in files.items()}
        tree = repository.commits[start] | new
        return self.add_commit(repository, branch, tree, title)

    def files(self, name, revision="main"):
        """Return path -> content of a revision."""
        _, tree = self.tree(self.repositories[name], revision)
        return {
            path: (self.folder / file.sha256).read_bytes()
            for path, file in tree.items()
        }

    def store(self, content, path):
        """Keep a content; return the `File` that it is under the name `path`."""
        if isinstance(content, Path):
            with open(content, "rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            if content != self.folder / sha256:
                shutil.copyfile(content, self.folder / sha256)
        else:
            sha256 = hashlib.sha256(content).hexdigest()
            (self.folder / sha256).write_bytes(content)
        size = (self.folder / sha256).stat().st_size
        lfs = path.endswith(LFS_ENDINGS)
        # Git itself holds but a pointer to a large file.
        git = sha256.encode() if lfs else (self.folder / sha256).read_bytes()
        git_sha1 = hashlib.sha1(b"blob %d\0" % len(git) + git).hexdigest()
        return File(size, sha256, git_sha1, lfs)

    def tree(self, repository, revision):
        """Return the commit that a revision is, and its path -> File."""
        references = repository.branches | repository.tags
        commit = references.get(revision, revision)
        if commit not in repository.commits:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit, repository.commits[commit]

    def find(self, name, user, *, write=False):
        """Return the repository, if `user` may know of it."""
        repository = self.repositories.get(name)
        if repository is None or (repository.private and user != repository.owner):
            # A stranger is not told whether it exists. On plain http the client
            # understands that only with the code.
            status = 404 if user else 401
            raise Refusal(status, "Repository not found", "RepoNotFound")
        if write and user != repository.owner:
            raise Refusal(403 if user else 401, "You may not write to this repository")
        return repository

    def take_fault(self, method, path):
        with self.lock:
            for fault in self._faults:
                if fault[2] > 0 and fault[1] in (None, method):
                    if re.search(fault[0], path):
                        fault[2] -= 1
                        return fault[3:]
        return None, None

    def add_commit(self, repository, branch, tree, title):
        parent = repository.branches.get(branch)
        text = repr((repository.name, branch, parent, sorted(tree.items()), title))
        commit = hashlib.sha1(text.encode()).hexdigest()
        repository.commits[commit], repository.branches[branch] = tree, commit
        repository.titles[commit] = title
        return commit


_ROUTES = []


def _route(method, pattern):
    """Serve what matches, where `{name}`, `{rev}` and so on stand for what they say."""
    groups = {
        "kind": "(models|spaces)",
        "name": "[^/]+/[^/]+",
        "rev": "[^/]+",
        "path": ".+",
        "sha256": "\\w{64}",
    }
    for group, form in groups.items():
        pattern = pattern.replace(f"{{{group}}}", f"(?P<{group}>{form})")

    def add(function):
        _ROUTES.append((method, re.compile(pattern), function))
        return function

    return add


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def handle_any(self):
        self.hub = self.server.hub
        path, query = urlsplit(self.path).path, urlsplit(self.path).query
        self.query = parse_qs(query, keep_blank_values=True)
        authorization = self.headers.get("Authorization", "")
        token = authorization.removeprefix("Bearer ")
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.record = {
            "method": self.command,
            "path": path,
            "status": None,
            "sent": 0,
            "range": self.headers.get("Range"),
            "token": token or None,
            "agent": self.headers.get("User-Agent"),
            "body": self.body[:1000],
        }
        self.hub.log.append(self.record)
        self.kind, self.value = self.hub.take_fault(self.command, path)
        try:
            if token and token not in self.hub.tokens:
                raise Refusal(401, "Invalid credentials in Authorization header")
            self.user = self.hub.tokens.get(token)
            if self.kind == "status":
                raise Refusal(self.value, "injected")
            if self.kind == "drop" and not self.value:
                raise ConnectionResetError
            if self.kind == "call":
                self.value()
            self._serve(path)
        except Refusal as refusal:
            self.answer({"error": str(refusal)}, refusal.status, **refusal.headers)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # no answer, or nobody to hear it

    do_GET = do_HEAD = do_POST = do_PUT = handle_any

    def _serve(self, path):
        method = "GET" if self.command == "HEAD" else self.command
        for verb, pattern, function in _ROUTES:
            match = pattern.fullmatch(path)
            if verb == method and match:
                groups = {k: v and unquote(v) for k, v in match.groupdict().items()}
                groups.pop("kind", None)
                return function(self, self.hub, **groups)
        raise Refusal(404, f"Cannot {self.command} {path}")

    def head(self, status, length, headers):
        self.record["status"] = status
        self.send_response(status)
        for name, value in {"Content-Length": length, **headers}.items():
            self.send_header(name, str(value))
        self.end_headers()

    def answer(self, data, status=200, **headers):
        payload = json.dumps(data).encode()
        headers = {"Content-Type": "application/json; charset=utf-8", **headers}
        self.head(status, len(payload), headers)
        if self.command != "HEAD":
            self.wfile.write(payload)

    def send_content(self, file, **headers):
        """Send a file, or the range of it that is asked for, with the fault, if any."""
        start, status = 0, 200
        headers = {"ETag": f'"{file.etag}"', "Accept-Ranges": "bytes", **headers}
        if match := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            start, status = int(match[1]), 206
            headers["Content-Range"] = f"bytes {start}-{file.size - 1}/{file.size}"
            if start >= file.size:
                raise Refusal(416, "Range not satisfiable")
        left = file.size - start
        if self.kind == "truncate":
            left = min(left, self.value)
        self.head(status, left, headers)
        if self.command == "HEAD":
            return
        if self.kind == "stall":
            time.sleep(self.value)
        with open(self.hub.folder / file.sha256, "rb") as content:
            content.seek(start)
            while left > 0:
                data = content.read(min(_CHUNK, left))
                if self.kind == "corrupt" and left == file.size - start:
                    data = bytes(byte ^ 0xFF for byte in data[:64]) + data[64:]
                if self.kind == "drop" and self.record["sent"] + len(data) > self.value:
                    self.wfile.write(data[: self.value - self.record["sent"]])
                    self.record["sent"] = self.value
                    self.close_connection = True
                    return self.connection.shutdown(socket.SHUT_RDWR)
                self.wfile.write(data)
                self.record["sent"] += len(data)
                left -= len(data)
                if self.kind == "slow":
                    time.sleep(len(data) / self.value)


# --- what is known of a repository ------------------------------------------------


@_route("POST", "/api/repos/create")
def _create(request, hub):
    body = json.loads(request.body)
    name = f"{body.get('organization') or request.user}/{body['name']}"
    if request.user is None or name.split("/")[0] != request.user:
        raise Refusal(403 if request.user else 401, f"You may not create {name}")
    if name in hub.repositories:
        return request.answer({"url": f"{hub.url}/{name}"}, 409)
    # The older clients say it in another way.
    private = body.get("visibility") == "private" or body.get("private") is True
    hub.create(name, private=private)
    request.answer({"url": f"{hub.url}/{name}"})


@_route("GET", "/api/{kind}/{name}(/revision/{rev})?")
def _info(request, hub, name, rev):
    repository = hub.find(name, request.user)
    commit, tree = hub.tree(repository, rev or "main")
    request.answer(
        {
            "id": name,
            "sha": commit,
            "private": repository.private,
            "gated": repository.gated,
            "siblings": [
                {"rfilename": path, "size": file.size, "blobId": file.git_sha1}
                | ({"lfs": _lfs(file, "sha256")} if file.lfs else {})
                for path, file in tree.items()
            ],
        }
    )


@_route("GET", "/api/{kind}/{name}/tree/{rev}")
def _tree(request, hub, name, rev):
    _, tree = hub.tree(hub.find(name, request.user), rev)
    request.answer(
        [
            {"type": "file", "path": path, "size": file.size, "oid": file.git_sha1}
            | ({"lfs": _lfs(file, "oid")} if file.lfs else {})
            for path, file in sorted(tree.items())
        ]
    )


def _lfs(file, key):
    return {key: file.sha256, "size": file.size, "pointerSize": 130}


@_route("POST", "/api/{kind}/{name}/tag/{rev}")
def _tag(request, hub, name, rev):
    repository = hub.find(name, request.user, write=True)
    tag = json.loads(request.body)["tag"]
    if tag in repository.tags:
        raise Refusal(409, f"Tag exists already: {tag}")
    repository.tags[tag], _ = hub.tree(repository, rev)
    request.answer({})


# --- upload -----------------------------------------------------------------------


@_route("POST", "/api/validate-yaml")
def _validate_yaml(request, hub):
    content = json.loads(request.body)["content"]
    errors = [] if re.match(r"---\n.*?\n---\n", content, re.S) else ["no front matter"]
    errors = [{"message": message} for message in errors]
    request.answer({"errors": errors, "warnings": []}, 400 if errors else 200)


@_route("POST", "/api/{kind}/{name}/preupload/{rev}")
def _preupload(request, hub, name, rev):
    _, tree = hub.tree(hub.find(name, request.user, write=True), rev)
    answers = []
    for file in json.loads(request.body)["files"]:
        mode = "lfs" if file["path"].endswith(LFS_ENDINGS) else "regular"
        answer = {"path": file["path"], "shouldIgnore": False, "uploadMode": mode}
        if file["path"] in tree:
            answer["oid"] = tree[file["path"]].etag
        answers.append(answer)
    request.answer({"files": answers})


@_route("POST", "/(spaces/)?{name}\\.git/info/lfs/objects/batch")
def _batch(request, hub, name):
    hub.find(name, request.user, write=True)
    objects = json.loads(request.body)["objects"]
    for item in objects:
        if not (hub.folder / item["oid"]).exists():
            href = f"{hub.storage_url}/storage/{item['oid']}"
            item["actions"] = {"upload": {"href": href}}
    request.answer({"transfer": "basic", "objects": objects})


@_route("PUT", "/storage/{sha256}")
def _put(request, hub, sha256):
    if hashlib.sha256(request.body).hexdigest() != sha256:
        raise Refusal(400, "The content is not what was announced")
    (hub.folder / sha256).write_bytes(request.body)
    request.answer({})


@_route("POST", "/api/{kind}/{name}/commit/{rev}")
def _commit(request, hub, name, rev):
    repository = hub.find(name, request.user, write=True)
    header, *items = (json.loads(line) for line in request.body.splitlines())
    new, gone = {}, {i["value"]["path"] for i in items if i["key"] == "deletedFile"}
    for value in (item["value"] for item in items if item["key"] != "deletedFile"):
        content = hub.folder / value.get("oid", "")
        if "content" in value:
            content = base64.b64decode(value["content"])
        elif not content.is_file():
            raise Refusal(400, f"{value['path']} was not uploaded")
        new[value["path"]] = hub.store(content, value["path"])
    with hub.lock:
        parent, tree = hub.tree(repository, rev)
        if header["value"].get("parentCommit", parent) != parent:
            raise Refusal(412, "A commit has happened since")
        title = header["value"]["summary"]
        tree = {path: file for path, file in tree.items() if path not in gone}
        commit = hub.add_commit(repository, rev, tree | new, title)
    url = f"{hub.url}/{name}/commit/{commit}"
    request.answer({"success": True, "commitOid": commit, "commitUrl": url})


# --- download ---------------------------------------------------------------------


@_route("GET", "/(spaces/)?{name}/resolve/{rev}/{path}")
def _resolve(request, hub, name, rev, path):
    commit, file = _find_file(request, hub, name, rev, path)
    location = f"/api/resolve-cache/models/{name}/{commit}/{quote(path)}"
    if file.lfs:
        location = f"{hub.storage_url}/storage/{file.sha256}"
    headers = {"X-Repo-Commit": commit, "X-Linked-Size": file.size}
    headers |= {"X-Linked-Etag": f'"{file.etag}"', "Location": location}
    request.head(302 if file.lfs else 307, 0, headers)


@_route("GET", "/api/resolve-cache/(models|spaces)/{name}/{rev}/{path}")
def _cached(request, hub, name, rev, path):
    commit, file = _find_file(request, hub, name, rev, path)
    request.send_content(file, **{"X-Repo-Commit": commit})


@_route("GET", "/storage/{sha256}")
def _storage(request, hub, sha256):
    if not (hub.folder / sha256).exists():
        raise Refusal(404, "NoSuchKey")
    size = (hub.folder / sha256).stat().st_size
    request.send_content(File(size, sha256, "", lfs=True))


def _find_file(request, hub, name, rev, path):
    repository = hub.find(name, request.user)
    if repository.gated and request.user != repository.owner:
        status = 403 if request.user else 401
        raise Refusal(status, f"Access to model {name} is restricted.", "GatedRepo")
    commit, tree = hub.tree(repository, rev)
    if path not in tree:
        headers = {"X-Repo-Commit": commit}
        raise Refusal(404, f"No file {path}", "EntryNotFound", **headers)
    return commit, tree[path]
