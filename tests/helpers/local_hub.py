"""A Hub on this machine that the real huggingface_hub client talks to over HTTP, and that fails where it is told to.

    with LocalHub() as hub:
        hub.fail(Fault("POST", "/commit/", 500))
        subprocess.run(..., env=hub.environment(tmp_path))

It speaks the LFS protocol (the client must run with HF_HUB_DISABLE_XET=1) and keeps everything in memory: models,
branches, tags, pull requests, collections. A commit's id is a hash of its parent and its files, so the same commits in
the same order have the same ids on every such Hub.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import socket
import struct
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

TOKEN = "hf_" + "localtesting" * 3  # nothing that a real Hub has ever given out
USER = "someone"
LFS_ENDINGS = (".safetensors", ".png", ".bin", ".pt")
WHEN = "2026-01-01T00:00:00.000Z"


_LOGIN = b"<!doctype html><html><body>Welcome. Room number?</body></html>"
_PAGES = {"html": _LOGIN, "json": b'{"a": [1]}', "empty": b""}


@dataclass
class Fault:
    """What goes wrong, and when.

    Args:
        method: of the request, such as "POST".
        path: a regular expression that is searched in the request's path.
        what: a status code; "reset" (the connection breaks before anything is done), "lost" (it is done, and the
            connection breaks before the answer); "silence" (nothing is done and nothing is said); "html" (a page to
            log in, with 200, as hotels have it), "json" (other JSON), "empty", or "cut" (half of a page).
        times: how often; None for always.
        skip: requests that still succeed first.
        code: the X-Error-Code of the answer.
    """

    method: str
    path: str
    what: int | str
    times: int | None = 1
    skip: int = 0
    code: str = ""
    met: int = 0

    def strikes(self, method: str, path: str) -> bool:
        """Does it concern this request? Counts."""
        if method != self.method or not re.search(self.path, path) or self.times == 0:
            return False
        if self.skip:
            self.skip -= 1
            return False
        if self.times is not None:
            self.times -= 1
        self.met += 1
        return True


@dataclass
class Repository:
    """Branches, tags and pull requests by name, and every commit's files by path; content is the file's bytes."""

    private: bool
    refs: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    titles: dict[str, str] = field(default_factory=dict)  # of pull requests, by their number
    gated: bool = False

    def find(self, revision: str) -> str | None:
        """The commit a branch, tag, pull request or commit id names."""
        for names in (self.refs, self.tags):
            if revision in names:
                return names[revision]
        return revision if revision in self.commits else None


class LocalHub:
    """The server; a context manager.

    Attributes:
        endpoint: its address, for HF_ENDPOINT.
        repos: `Repository` by "owner/name"; Spaces by "spaces/owner/name".
        collections: titles and items by slug.
        requests: (method, path) of every request so far.
    """

    def __init__(self) -> None:
        self.repos: dict[str, Repository] = {}
        self.collections: dict[str, dict[str, Any]] = {}
        self.requests: list[tuple[str, str]] = []
        self.faults: list[Fault] = []
        self.blobs: dict[str, bytes] = {}
        self.lock = threading.RLock()
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> LocalHub:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def fail(self, *faults: Fault) -> None:
        """From now on, these instead of any before."""
        self.faults = list(faults)

    def add(self, repo: str, files: Mapping[str, bytes], *, private: bool = False) -> Repository:
        """A repository that is there already."""
        made = self._create(repo, private)
        self.commit(made, "main", dict(files))
        return made

    def files(self, repo: str, revision: str = "main") -> dict[str, bytes]:
        """What a revision holds."""
        found = self.repos[repo]
        return found.commits[found.find(revision) or ""]

    def history(self, repo: str) -> int:
        """Commits of a repository beyond the empty first one."""
        return len(self.repos[repo].commits) - 1

    def environment(self, home: Path, token: str | None = TOKEN) -> dict[str, str]:
        """For a process of its own, whose cache is in `home`."""
        own = {"HF_ENDPOINT": self.endpoint, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1"}
        own |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
        others = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING_FACE"))}
        return others | own | ({} if token is None else {"HF_TOKEN": token})

    def use_here(self, patch: pytest.MonkeyPatch, home: Path, token: str | None = TOKEN) -> None:
        """Point this process's client at the Hub until the test ends, with its cache in `home`; it never sleeps."""
        import huggingface_hub.utils._http as http
        from huggingface_hub import constants

        patch.setattr(constants, "ENDPOINT", self.endpoint)
        template = self.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        patch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
        patch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
        patch.setattr(constants, "HF_STORED_TOKENS_PATH", str(home / "stored_tokens"))
        patch.setattr(http, "time", SimpleNamespace(sleep=lambda seconds: None, time=time.time))
        patch.setenv("NO_PROXY", "127.0.0.1")
        if token is None:
            patch.delenv("HF_TOKEN", raising=False)
        else:
            patch.setenv("HF_TOKEN", token)

    def _create(self, repo: str, private: bool) -> Repository:
        made = self.repos[repo] = Repository(private)
        first = _sha1(f"{repo} is empty".encode())
        made.commits[first] = {}
        made.refs["main"] = first
        return made

    def commit(self, repo: Repository, ref: str, files: dict[str, bytes]) -> str:
        """The next commit of a branch."""
        parent = repo.refs[ref]
        listing = "".join(f"{path} {_sha1(data)}\n" for path, data in sorted(files.items()))
        oid = _sha1(f"{parent}\n{listing}".encode())
        repo.commits[oid] = files
        repo.refs[ref] = oid
        return oid


class _Handler(BaseHTTPRequestHandler):
    hub: LocalHub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def handle_any(self) -> None:
        path = unquote(urlsplit(self.path).path)
        body = self._body() if self.command in ("POST", "PUT", "DELETE") else b""
        with self.hub.lock:
            self.hub.requests.append((self.command, path))
            fault = next((fault for fault in self.hub.faults if fault.strikes(self.command, path)), None)
            if fault is None or fault.what == "lost":
                self.mute = fault is not None
                self._route(path, parse_qs(urlsplit(self.path).query), body)
        if fault is None:
            return
        if fault.what in _PAGES:
            self.mute = False
            data = _PAGES[str(fault.what)]
            headers = {"Content-Type": "application/json" if fault.what == "json" else "text/html", "ETag": '"x"'}
            self._send(200, data, headers)
            return
        if fault.what == "cut":
            self.send_response(200)
            self.send_header("Content-Length", "100000")
            self.end_headers()
            self.wfile.write(_PAGES["html"])
            self._break()
            return
        if fault.what == "silence":
            self._wait_for_the_client_to_go()
        if isinstance(fault.what, int):
            self.mute = False
            self._error(fault.what, fault.code, "planted")
        else:
            self._break()

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_any

    def log_message(self, *args: object) -> None:
        """Quiet."""

    def handle(self) -> None:
        try:
            super().handle()
        except (ConnectionError, OSError, ValueError):  # the client hung up, or we did
            self.close_connection = True

    def _break(self) -> None:
        # Lingering for zero seconds sends a reset instead of an orderly end.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()

    def _wait_for_the_client_to_go(self) -> None:
        self.connection.settimeout(20)
        try:
            while self.connection.recv(1024):
                pass
        except OSError:
            pass

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        pieces = b""
        while length := int(self.rfile.readline().split(b";")[0], 16):
            pieces += self.rfile.read(length)
            self.rfile.readline()
        self.rfile.readline()
        return pieces

    def _send(self, status: int, data: bytes, headers: Mapping[str, Any]) -> None:
        if self.mute:
            return
        self.send_response(status)
        for name, value in {**headers, "Content-Length": len(data)}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _json(self, value: Any, status: int = 200, **headers: Any) -> None:
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json", **headers})

    def _error(self, status: int, code: str, message: str) -> None:
        headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        self._json({"error": message}, status, **headers)

    def _may_write(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _route(self, path: str, query: dict[str, list[str]], body: bytes) -> None:
        writes = self.command not in ("GET", "HEAD") and not path.startswith(("/_lfs", "/api/validate-yaml"))
        if writes and not self._may_write():
            return self._error(401, "", "Invalid username or password.")
        for pattern, answer in _ROUTES:
            if match := re.fullmatch(pattern, path):
                return answer(self, *match.groups(), query=query, body=body)
        return self._error(404, "", f"no such page {path}")

    def _repo(self, name: str) -> Repository | None:
        """The repository, or None after the answer that it is missing, private or gated."""
        found = self.hub.repos.get(name)
        if found is None or (found.private and not self._may_write()):
            self._error(404 if self._may_write() else 401, "RepoNotFound", "Repository not found")
            return None
        if found.gated and not self._may_write():
            self._error(403, "GatedRepo", "Access to this model is restricted")
            return None
        return found

    def _revision(self, name: str, revision: str) -> tuple[Repository, str] | None:
        repo = self._repo(name)
        if repo is None:
            return None
        oid = repo.find(revision)
        if oid is None:
            self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return None
        return repo, oid

    # -- one method a page ---------------------------------------------------------------------------------------

    def whoami(self, **_: Any) -> None:
        if not self._may_write():
            return self._error(401, "", "Invalid username or password.")
        self._json({"type": "user", "name": USER, "orgs": [], "auth": {"type": "access_token"}})

    def validate_yaml(self, *, body: bytes, **_: Any) -> None:
        import yaml

        text = json.loads(body)["content"]
        try:
            data = yaml.safe_load(text.split("---\n")[1]) if text.startswith("---\n") else {}
            errors = [] if isinstance(data, dict) else [{"message": "no mapping"}]
        except yaml.YAMLError as error:
            errors = [{"message": str(error)}]
        self._json({"errors": errors, "warnings": []}, 400 if errors else 200)

    def create(self, *, body: bytes, **_: Any) -> None:
        said = json.loads(body)
        name = f"{said.get('organization') or USER}/{said['name']}"
        if said.get("type") == "space":
            name = f"spaces/{name}"
        url = f"{self.hub.endpoint}/{name}"
        if name in self.hub.repos:
            return self._json({"error": "You already created this repo", "url": url}, 409)
        self.hub._create(name, said.get("visibility") == "private")
        self._json({"url": url, "name": name})

    def lfs_batch(self, _: str, *, body: bytes, **__: Any) -> None:
        objects = []
        for wanted in json.loads(body)["objects"]:
            entry: dict[str, Any] = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.hub.blobs:
                upload = {"href": f"{self.hub.endpoint}/_lfs/{wanted['oid']}"}
                entry["actions"] = {"upload": upload, "verify": {"href": f"{self.hub.endpoint}/_lfs_verify"}}
            objects.append(entry)
        self._json({"transfer": "basic", "objects": objects})

    def lfs_put(self, oid: str, *, body: bytes, **_: Any) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            return self._error(400, "", "the content is not what its hash says")
        self.hub.blobs[oid] = body
        self._send(200, b"", {})

    def lfs_verify(self, *, body: bytes, **_: Any) -> None:
        said = json.loads(body)
        there = len(self.hub.blobs.get(said["oid"], b"")) == said["size"]
        self._json({}) if there else self._error(404, "", "missing")

    def preupload(self, name: str, revision: str, *, body: bytes, **_: Any) -> None:
        found = self._revision(name, revision)
        if found is None:
            return
        held = found[0].commits[found[1]]
        answers = []
        for wanted in json.loads(body)["files"]:
            mode = "lfs" if wanted["path"].endswith(LFS_ENDINGS) else "regular"
            oid = _entry(wanted["path"], held[wanted["path"]])["oid"] if wanted["path"] in held else None
            answers.append({"path": wanted["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self._json({"files": answers})

    def commit(self, name: str, revision: str, *, query: dict[str, list[str]], body: bytes) -> None:
        found = self._revision(name, revision)
        if found is None:
            return
        repo, oid = found
        lines = [json.loads(line) for line in body.splitlines()]
        header = next(line["value"] for line in lines if line["key"] == "header")
        parent = header.get("parentCommit")
        if parent not in (None, oid):
            return self._error(412, "", "A commit has happened since. Please refresh and try again.")
        files = dict(repo.commits[oid])
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.blobs[value["oid"]]
            elif line["key"] == "deletedFile":
                files.pop(value["path"], None)
        answer = {}
        if "create_pr" in query:
            number = str(len(repo.titles) + 1)
            revision, repo.titles[number] = f"refs/pr/{number}", header["summary"]
            repo.refs[revision] = oid
            answer["pullRequestUrl"] = f"{self.hub.endpoint}/{name}/discussions/{number}"
        new = self.hub.commit(repo, revision, files)
        url = f"{self.hub.endpoint}/{name}/commit/{new}"
        self._json({"success": True, "commitOid": new, "commitUrl": url, "hookOutput": "", **answer})

    def page(self, name: str, revision: str | None = None, **_: Any) -> None:
        found = self._revision(name, revision or "main")
        if found is None:
            return
        repo, oid = found
        siblings = []
        for path, data in sorted(repo.commits[oid].items()):
            entry = _entry(path, data)
            siblings.append({"rfilename": path, "size": len(data), "blobId": entry["oid"]})
        facts = {"_id": _sha1(name.encode())[:24], "id": name, "modelId": name, "sha": oid, "private": repo.private}
        self._json({**facts, "gated": repo.gated, "tags": [], "siblings": siblings, "createdAt": WHEN})

    def tree(self, name: str, revision: str, *_: Any, query: dict[str, list[str]], **__: Any) -> None:
        found = self._revision(name, revision)
        if found is not None:
            held = found[0].commits[found[1]]
            self._json([_entry(path, data) for path, data in sorted(held.items())])

    def refs(self, name: str, **_: Any) -> None:
        repo = self._repo(name)
        if repo is None:
            return
        branches = [_ref(ref, f"refs/heads/{ref}", oid) for ref, oid in repo.refs.items() if "/" not in ref]
        pulls = [_ref(ref, ref, oid) for ref, oid in repo.refs.items() if "/" in ref]
        tags = [_ref(tag, f"refs/tags/{tag}", oid) for tag, oid in repo.tags.items()]
        self._json({"branches": branches, "converts": [], "tags": tags, "pullRequests": pulls})

    def tag(self, name: str, revision: str, *, body: bytes, **_: Any) -> None:
        found, tag = self._revision(name, revision), json.loads(body)["tag"]
        if found is None:
            return
        if tag in found[0].tags:
            return self._error(409, "", "Tag reference exists already")
        found[0].tags[tag] = found[1]
        self._json({})

    def branch(self, name: str, branch: str, *, body: bytes, **_: Any) -> None:
        repo = self._repo(name)
        if repo is None:
            return
        if branch in repo.refs:
            return self._error(409, "", "Reference already exists")
        repo.refs[branch] = repo.find(json.loads(body or b"{}").get("startingPoint", "main")) or ""
        self._json({})

    def discussions(self, name: str, **_: Any) -> None:
        repo = self._repo(name)
        if repo is None:
            return
        where = {"repo": {"name": name, "type": "model"}, "author": {"name": USER}, "createdAt": WHEN}
        found = [
            {"num": int(number), "title": title, "status": "open", "isPullRequest": True, **where}
            for number, title in repo.titles.items()
        ]
        self._json({"discussions": found, "count": len(found), "start": 0})

    def new_collection(self, *, body: bytes, **_: Any) -> None:
        said = json.loads(body)
        slug = f"{said['namespace']}/{said['title'].lower().replace(' ', '-')}-{'0' * 24}"
        if slug in self.hub.collections:
            return self._json({"slug": slug, "error": "exists"}, 409)
        facts = {"slug": slug, "title": said["title"], "private": said["private"], "owner": {"name": USER}}
        facts |= {"items": [], "lastUpdated": WHEN, "position": 0, "theme": "blue", "upvotes": 0}
        self.hub.collections[slug] = facts
        self._json(facts)

    def collection(self, slug: str, **_: Any) -> None:
        if slug not in self.hub.collections:
            return self._error(404, "", "no such collection")
        self._json(self.hub.collections[slug])

    def collection_item(self, slug: str, *, body: bytes, **_: Any) -> None:
        if slug not in self.hub.collections:
            return self._error(404, "", "no such collection")
        item, items = json.loads(body)["item"], self.hub.collections[slug]["items"]
        if item["id"] in [known["id"] for known in items]:
            return self._error(409, "", "the item is in the collection already")
        items.append({"_id": str(len(items)), "id": item["id"], "type": item["type"], "position": len(items)})
        self._json(self.hub.collections[slug])

    def resolve(self, name: str, revision: str, path: str, **_: Any) -> None:
        found = self._revision(name, revision)
        if found is None:
            return
        repo, oid = found
        data = repo.commits[oid].get(path)
        if data is None:
            headers = {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found", "X-Repo-Commit": oid}
            return self._send(404, b"", headers)
        entry = _entry(path, data)
        headers = {"ETag": f'"{entry["oid"]}"', "X-Repo-Commit": oid, "Accept-Ranges": "bytes"}
        if "lfs" in entry:
            # Bytes at once, no redirect: the client follows those to the same host and then misses X-Repo-Commit.
            headers |= {"ETag": f'"{entry["lfs"]["oid"]}"', "X-Linked-Etag": f'"{entry["lfs"]["oid"]}"'}
            headers |= {"X-Linked-Size": str(len(data))}
        self._send(200, data, headers)


_NAME = r"((?:spaces/)?[^/]+/[^/]+)"
_REVISION = r"(refs/pr/\d+|[^/]+)"
_MODEL = rf"/api/(?:models/|(?=spaces/)){_NAME}"
_ROUTES: list[tuple[str, Any]] = [
    (r"/api/whoami-v2", _Handler.whoami),
    (r"/api/validate-yaml", _Handler.validate_yaml),
    (r"/api/repos/create", _Handler.create),
    (rf"/{_NAME}\.git/info/lfs/objects/batch", _Handler.lfs_batch),
    (r"/_lfs/([0-9a-f]{64})", _Handler.lfs_put),
    (r"/_lfs_verify", _Handler.lfs_verify),
    (rf"{_MODEL}/preupload/{_REVISION}", _Handler.preupload),
    (rf"{_MODEL}/commit/{_REVISION}", _Handler.commit),
    (rf"{_MODEL}/revision/{_REVISION}", _Handler.page),
    (rf"{_MODEL}/tree/{_REVISION}(/.*)?", _Handler.tree),
    (rf"{_MODEL}/refs", _Handler.refs),
    (rf"{_MODEL}/tag/{_REVISION}", _Handler.tag),
    (rf"{_MODEL}/branch/{_REVISION}", _Handler.branch),
    (rf"{_MODEL}/discussions", _Handler.discussions),
    (_MODEL, _Handler.page),
    (r"/api/collections", _Handler.new_collection),
    (r"/api/collections/([^/]+/[^/]+)", _Handler.collection),
    (r"/api/collections/([^/]+/[^/]+)/items", _Handler.collection_item),
    (rf"/{_NAME}/resolve/{_REVISION}/(.+)", _Handler.resolve),
]


def _sha1(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


def _entry(path: str, data: bytes) -> dict[str, Any]:
    """A file as the tree lists it: git's own id, that of its pointer where the file is in LFS."""
    shown: dict[str, Any] = {"type": "file", "path": path, "size": len(data)}
    if path.endswith(LFS_ENDINGS):
        oid = hashlib.sha256(data).hexdigest()
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {len(data)}\n".encode()
        shown["lfs"] = {"oid": oid, "size": len(data), "pointerSize": len(pointer)}
        data = pointer
    return {**shown, "oid": _sha1(b"blob %d\0" % len(data) + data)}


def _ref(name: str, ref: str, oid: str) -> dict[str, str]:
    return {"name": name, "ref": ref, "targetCommit": oid}
