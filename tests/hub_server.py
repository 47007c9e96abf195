"""The Hub on loopback: what `huggingface_hub` needs of its API to push and to pull, with faults to order.

Large files (`*.safetensors`) go over LFS and the rest in the commit, as on the Hub. Everything is in memory.
"""

import base64
import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

TOKENS = {"hf_me": "me", "hf_reader": "reader"}
"""The user of each token; `reader` may not write."""


@dataclass
class Repository:
    """A model or dataset: its commits by their ids, and what points to them."""

    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"0" * 40: {}})
    refs: dict[str, str] = field(default_factory=lambda: {"main": "0" * 40})

    def files(self, revision: str = "main") -> dict[str, bytes]:
        """Those of a branch, a tag or a commit."""
        return self.commits[self.refs.get(revision, revision)]

    def commit(self, branch: str, changes: dict[str, bytes]) -> str:
        """Put files on a branch; returns the commit."""
        files = self.files(branch) | changes
        oid = hashlib.sha1(repr((time.time(), sorted(files))).encode()).hexdigest()
        self.commits[oid] = files
        self.refs[branch] = oid
        return oid


@dataclass
class Fault:
    """An answer in the place of the right one.

    Attributes:
        request: Regular expression for "METHOD /path".
        status: Of the answer; 0 cuts the connection in the middle of the body.
        times: How often.
        headers: Of the answer.
    """

    request: str
    status: int
    times: int = 1_000_000
    headers: dict[str, str] = field(default_factory=dict)


class FakeHub:
    """A Hub that listens on a free port of loopback."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.datasets: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.requests: list[str] = []
        self._listen(0)

    def _listen(self, port: int) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", port), type("Handler", (_Handler,), {"hub": self}))
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    @property
    def environment(self) -> dict[str, str]:
        """With which an unmodified client talks to it: by LFS, as hf_xet speaks a protocol of its own."""
        switches = {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
        return {"HF_ENDPOINT": self.url, "HF_TOKEN": "hf_me", **switches}

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    @contextmanager
    def out_of_reach(self) -> Iterator[None]:
        """Nothing listens at its address."""
        port = self._server.server_port
        self.close()
        yield
        self._listen(port)

    def due_fault(self, request: str) -> Fault | None:
        """The fault that is due for a request, which counts."""
        for fault in self.faults:
            if fault.times > 0 and re.search(fault.request, request):
                fault.times -= 1
                return fault
        return None


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def handle_request(self) -> None:
        path = unquote(self.path.partition("?")[0])
        request = f"{self.command} {path}"
        self.hub.requests.append(request)
        fault = self.hub.due_fault(request)
        if fault and fault.status == 0:
            self.rfile.read(min(512, int(self.headers["Content-Length"] or 0) // 2))
            self.close_connection = True
            self.connection.shutdown(2)
            return
        body = self._body()
        if fault:
            self._answer({"error": "a fault of the test"}, fault.status, fault.headers)
            return
        for pattern, method in _ROUTES.items():
            if match := re.fullmatch(pattern, request):
                getattr(self, method)(body, **match.groupdict())
                return
        self._answer({"error": f"The test's Hub does not know {request}."}, 400)

    do_GET = do_HEAD = do_POST = do_PUT = handle_request  # noqa: N815

    def whoami(self, body: bytes) -> None:
        if self._user is None:
            self._answer({"error": "Invalid credentials"}, 401)
        else:
            self._answer({"type": "user", "name": self._user, "orgs": [], "auth": {}})

    def create(self, body: bytes) -> None:
        asked = json.loads(body)
        name = f"{asked.get('organization') or self._user}/{asked['name']}"
        if not self._may_write():
            return
        if name in self.hub.repositories:
            url = f"{self.hub.url}/{name}"
            self._answer({"error": "You already created this model repo", "url": url}, 409)
            return
        self.hub.repositories[name] = Repository(asked.get("visibility") == "private")
        self._answer({"url": f"{self.hub.url}/{name}", "id": name})

    def validate_yaml(self, body: bytes) -> None:
        self._answer({"errors": [], "warnings": []})

    def info(self, body: bytes, kind: str, repo: str, revision: str = "main") -> None:
        if found := self._repository(kind, repo, revision):
            card = found.files(revision).get("README.md", b"").decode()
            siblings = [{"rfilename": name} for name in found.files(revision)]
            sha = found.refs.get(revision, revision)
            info = {"id": repo, "private": found.private, "sha": sha, "siblings": siblings, "tags": []}
            if card.startswith("---\n"):
                import yaml

                info["cardData"] = yaml.safe_load(card.split("---\n")[1])
            self._answer(info)

    def tree(self, body: bytes, repo: str, revision: str) -> None:
        if found := self._repository("models", repo, revision):
            files = found.files(revision).items()
            self._answer([{"type": "file", "path": p, "size": len(c), "oid": _sha(c)} for p, c in files])

    def preupload(self, body: bytes, repo: str, revision: str) -> None:
        if self._may_write() and self._repository("models", repo, revision):
            paths = [file["path"] for file in json.loads(body)["files"]]
            modes = {path: "lfs" if path.endswith(".safetensors") else "regular" for path in paths}
            self._answer(
                {"files": [{"path": p, "uploadMode": m, "shouldIgnore": False} for p, m in modes.items()]}
            )

    def lfs_batch(self, body: bytes, repo: str) -> None:
        objects = []
        for one in json.loads(body)["objects"]:
            upload = {"upload": {"href": f"{self.hub.url}/lfs/{one['oid']}"}}
            objects.append(one if one["oid"] in self.hub.objects else {**one, "actions": upload})
        self._answer({"transfer": "basic", "objects": objects})

    def lfs_put(self, body: bytes, oid: str) -> None:
        if _sha(body) == oid:
            self.hub.objects[oid] = body
            self._answer({})
        else:
            self._answer({"error": "The object is not the one that was announced."}, 422)

    def commit(self, body: bytes, repo: str, branch: str) -> None:
        if not (self._may_write() and (found := self._repository("models", repo, branch))):
            return
        changes = {}
        for operation in map(json.loads, body.splitlines()):
            value = operation["value"]
            if operation["key"] == "file":
                changes[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                changes[value["path"]] = self.hub.objects[value["oid"]]
        oid = found.commit(branch, changes)
        self._answer({"commitUrl": f"{self.hub.url}/{repo}/commit/{oid}", "commitOid": oid})

    def tag(self, body: bytes, repo: str, revision: str) -> None:
        if self._may_write() and (found := self._repository("models", repo, revision)):
            found.refs[json.loads(body)["tag"]] = found.refs.get(revision, revision)
            self._answer({})

    def branch(self, body: bytes, repo: str, branch: str) -> None:
        if self._may_write() and (found := self._repository("models", repo, "main")):
            if branch in found.refs:
                self._answer({"error": "Reference already exists"}, 409)
            else:
                found.refs[branch] = found.refs["main"]
                self._answer({})

    def resolve(self, body: bytes, repo: str, rest: str) -> None:
        found = self._repository("models", repo, "main")
        if found is None:
            return
        revision, _, path = rest.partition("/")
        if found.refs.get(revision, revision) not in found.commits:
            self._answer({"error": "Invalid rev"}, 404, {"X-Error-Code": "RevisionNotFound"})
        elif path not in found.files(revision):
            self._answer({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"})
        else:
            content = found.files(revision)[path]
            commit = {"X-Repo-Commit": found.refs.get(revision, revision), "ETag": f'"{_sha(content)}"'}
            self._answer(content, headers=commit)

    # --- parts

    @property
    def _user(self) -> str | None:
        return TOKENS.get(self.headers.get("Authorization", "").removeprefix("Bearer "))

    def _may_write(self) -> bool:
        if self._user == "me":
            return True
        self._answer({"error": "You don't have the rights to write here"}, 403 if self._user else 401)
        return False

    def _repository(self, kind: str, name: str, revision: str) -> Repository | None:
        """What may be seen; the Hub does not tell a private repository from one that is not there."""
        found = (self.hub.datasets if kind == "datasets" else self.hub.repositories).get(name)
        if found is None or (found.private and self._user is None):
            self._answer({"error": "Repository not found"}, 401, {"X-Error-Code": "RepoNotFound"})
            return None
        if found.refs.get(revision, revision) not in found.commits:
            self._answer({"error": "Invalid rev"}, 404, {"X-Error-Code": "RevisionNotFound"})
            return None
        return found

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _answer(self, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


_REPO = r"(?P<repo>[^/]+/[^/]+?)"
_API = f"/api/models/{_REPO}"
_ROUTES = {
    r"GET /api/whoami-v2": "whoami",
    r"POST /api/repos/create": "create",
    r"POST /api/validate-yaml": "validate_yaml",
    rf"GET /api/(?P<kind>models|datasets)/{_REPO}": "info",
    rf"GET /api/(?P<kind>models|datasets)/{_REPO}/revision/(?P<revision>.+)": "info",
    rf"GET {_API}/tree/(?P<revision>[^/]+)": "tree",
    rf"POST {_API}/preupload/(?P<revision>.+)": "preupload",
    rf"POST {_API}/commit/(?P<branch>.+)": "commit",
    rf"POST {_API}/tag/(?P<revision>.+)": "tag",
    rf"POST {_API}/branch/(?P<branch>.+)": "branch",
    rf"POST /{_REPO}\.git/info/lfs/objects/batch": "lfs_batch",
    r"PUT /lfs/(?P<oid>\w+)": "lfs_put",
    rf"(GET|HEAD) /{_REPO}/resolve/(?P<rest>.+)": "resolve",
}


def _sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
