"""A small Hugging Face hub on a loopback port: the paths that `huggingface_hub` requests, and the
faults of real hubs."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from typing import Any
from urllib.parse import unquote, urlsplit

# Files from this many bytes on are stored apart and known by their SHA-256.
LARGE = 4096


@dataclass
class Repo:
    """A repository at one commit.

    `token` is required where the repository is gated. `answers` is the status of every
    response, or `silent`. A `cut` file ends after so many bytes, and a `stalled` one sends
    nothing more after them, each so many `times`; `damaged` files arrive with wrong bytes.
    `no_ranges`: no partial files; `no_sizes`: a listing without sizes; `portal`: the page of
    somebody else answers; `private`: only the owner sees it, where the hub takes uploads.
    """

    files: dict[str, bytes]
    kind: str = "model"
    commit: str = "0123456789abcdef0123456789abcdef01234567"
    token: str | None = None
    answers: int | str = 200
    says: str = ""
    cut: dict[str, int] = field(default_factory=dict)
    stalled: dict[str, int] = field(default_factory=dict)
    times: int = 1_000
    damaged: bool = False
    no_ranges: bool = False
    no_sizes: bool = False
    portal: bool = False
    private: bool = False


@dataclass
class Hub:
    """The repositories by name, and a record of requests.

    `sent` counts the bytes of each file; `ranges` and `requested` list the requested ranges and
    paths.
    """

    repos: dict[str, Repo]
    url: str = ""
    sent: dict[str, int] = field(default_factory=dict)
    ranges: list[tuple[str, str]] = field(default_factory=list)
    requested: list[str] = field(default_factory=list)
    closed: Event = field(default_factory=Event)


def blob_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _entry(name: str, content: bytes) -> dict[str, Any]:
    """The hub's listing entry of a file."""
    entry: dict[str, Any] = {
        "rfilename": name,
        "path": name,
        "type": "file",
        "size": len(content),
        "oid": blob_id(content),
    }
    entry["blobId"] = entry["oid"]
    if len(content) >= LARGE:
        sha256 = hashlib.sha256(content).hexdigest()
        entry["lfs"] = {"sha256": sha256, "oid": sha256, "size": len(content), "pointerSize": 130}
    return entry


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing on the tests' terminal."""

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        self.hub.requested.append(f"{self.command} /{path}")
        place = next((name for name in sorted(self.hub.repos, key=len, reverse=True) if name in path), None)
        if place is None:
            self.json(401, {"error": "Repository not found"}, code="RepoNotFound")
            return
        repo = self.hub.repos[place]
        if repo.answers == "silent":
            self.hub.closed.wait()
            self.close_connection = True
            return
        if isinstance(repo.answers, int) and repo.answers != 200:
            self.json(repo.answers, {"error": repo.says}, says=repo.says)
            return
        rest = path.partition(place)[2].strip("/")
        is_file = rest.startswith("resolve/")
        if is_file and repo.token and self.headers.get("Authorization") != f"Bearer {repo.token}":
            status = 403 if self.headers.get("Authorization") else 401
            self.json(status, {"error": "gated"}, code="GatedRepo", says=repo.says)
        elif is_file:
            _, revision, name = rest.split("/", 2)
            self._file(repo, place, revision, name, body=body)
        elif rest.startswith(("tree/", "paths-info/")):
            self.json(200, [_entry(name, content) for name, content in repo.files.items()])
        else:
            self._info(repo, place, rest.removeprefix("revision/") or "main")

    def _info(self, repo: Repo, place: str, revision: str) -> None:
        if revision not in ("main", repo.commit):
            self.json(404, {"error": "Revision not found"}, code="RevisionNotFound")
            return
        if repo.portal:
            self._page()
            return
        siblings = [_entry(name, content) for name, content in repo.files.items()]
        if repo.no_sizes:
            siblings = [
                {
                    "rfilename": one["rfilename"],
                    "blobId": one["blobId"],
                    **({"lfs": one["lfs"]} if "lfs" in one else {}),
                }
                for one in siblings
            ]
        info = {
            "id": place,
            "sha": repo.commit,
            "private": repo.private,
            "gated": bool(repo.token),
            "tags": [],
            "downloads": 0,
        }
        self.json(200, {**info, "likes": 0, "siblings": siblings, "lastModified": "2026-01-01T00:00:00.000Z"})

    def _file(self, repo: Repo, place: str, revision: str, name: str, *, body: bool) -> None:
        if revision not in ("main", repo.commit) or name not in repo.files:
            self.json(404, {"error": "Entry not found"}, code="EntryNotFound")
            return
        content = repo.files[name]
        start, byte_range = 0, self.headers.get("Range")
        if byte_range:
            self.hub.ranges.append((name, byte_range))
            start = int(byte_range.removeprefix("bytes=").split("-")[0])
            if repo.no_ranges or start >= len(content):
                self.json(416, {"error": "Range not satisfiable"})
                return
        self.send_response(206 if byte_range else 200)
        self.send_header(
            "ETag", f'"{hashlib.sha256(content).hexdigest() if len(content) >= LARGE else blob_id(content)}"'
        )
        self.send_header("X-Repo-Commit", repo.commit)
        self.send_header("Accept-Ranges", "bytes")
        if byte_range:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        rest = content[start:]
        self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        if body:
            self._send(repo, name, rest[::-1] if repo.damaged else rest, start)

    def _send(self, repo: Repo, name: str, rest: bytes, start: int) -> None:
        limit = min(repo.cut.get(name, len(rest)), repo.stalled.get(name, len(rest))) if repo.times > 0 else len(rest)
        # Counted before the client can have received the bytes.
        self.hub.sent[name] = self.hub.sent.get(name, 0) + limit
        self.wfile.write(rest[:limit])
        self.wfile.flush()
        if limit == len(rest):
            return
        repo.times -= 1
        if name in repo.stalled:
            self.hub.closed.wait()
        self.close_connection = True

    def _page(self) -> None:
        page = b"<html>Please sign in to this network.</html>"
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        self.wfile.write(page)

    def json(self, status: int, value: Any, *, code: str = "", says: str = "") -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        for header, text in (("X-Error-Code", code), ("X-Error-Message", says)):
            if text:
                self.send_header(header, text)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@contextmanager
def serving(repos: dict[str, Repo], *, hub: Hub | None = None, answers: type[Handler] = Handler) -> Iterator[Any]:
    """The hub at `url` until the block ends."""
    hub = hub or Hub(repos)
    handler = type("Handler", (answers,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        hub.closed.set()
        server.shutdown()
        server.server_close()
