"""The small hub of `hub.py` with uploads.

A repository is created, large files go to a separate store (LFS), and one commit names them all.
The paths, words and status codes are those of the real hub.
"""

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlsplit

from tests.fakes.hub import LARGE, Handler, Hub, Repo, blob_id, serving


@dataclass
class Uploads(Hub):
    """The uploads of a hub.

    `owners` by token. `stored` are the large files by their SHA-256; `puts` are the ones that
    were sent. `refuses`: status and words for requests whose path contains a text. `cuts`: the
    number of large transfers that break off before the hub has the file.
    """

    owners: dict[str, str] = field(default_factory=dict)
    stored: dict[str, bytes] = field(default_factory=dict)
    puts: list[str] = field(default_factory=list)
    refuses: dict[str, tuple[int, str]] = field(default_factory=dict)
    cuts: int = 0
    commits: list[dict[str, Any]] = field(default_factory=list)


class _Uploading(Handler):
    hub: Uploads  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_GET(self) -> None:
        if not self._is_refused() and not self._is_hidden():
            super().do_GET()

    def do_PUT(self) -> None:
        body, oid = self._body(), self._path().removeprefix("lfs/")
        if self._is_refused():
            return
        if self.hub.cuts:
            self.hub.cuts -= 1
            self.json(403, {"error": "the connection to the store was lost"})
            return
        assert hashlib.sha256(body).hexdigest() == oid
        self.hub.stored[oid] = body
        self.hub.puts.append(oid)
        self.json(200, {})

    def do_POST(self) -> None:
        body, path = self._body(), self._path()
        self.hub.requested.append(f"POST /{path}")
        if self._is_refused():
            return
        if not path.startswith("api/validate-yaml") and self._owner() is None:
            self.json(401, {"error": "unauthorized"}, says="Invalid credentials in Authorization header")
        elif path == "api/repos/create":
            self._create(json.loads(body))
        elif path == "api/validate-yaml":
            self.json(200, {"errors": [], "warnings": []})
        elif path.endswith(".git/info/lfs/objects/batch"):
            self._batch(json.loads(body))
        elif path == "lfs-verify":
            self.json(200, {})
        else:
            self._on_repository(path, body)

    def _on_repository(self, path: str, body: bytes) -> None:
        name, _, what = path.removeprefix("api/models/").removesuffix("/main").rpartition("/")
        repo = self.hub.repos.get(name)
        if repo is None:
            self.json(404, {"error": "Repository not found"}, code="RepoNotFound")
        elif name.partition("/")[0] != self._owner():
            self.json(403, {"error": "forbidden"}, says="You don't have the required permissions")
        elif what == "preupload":
            self._preupload(repo, json.loads(body))
        else:
            self._commit(name, repo, [json.loads(line) for line in body.splitlines()])

    def _create(self, request: dict[str, Any]) -> None:
        name = f"{request['organization']}/{request['name']}"
        if request["organization"] != self._owner():
            self.json(
                403,
                {"error": "forbidden"},
                says=f"You don't have the rights to create a model under {request['organization']}",
            )
        elif name in self.hub.repos:
            self.json(409, {"error": "You already created this model repo", "url": f"{self.hub.url}/{name}"})
        else:
            self.hub.repos[name] = Repo({".gitattributes": b""}, private=request.get("visibility") == "private")
            self.json(200, {"url": f"{self.hub.url}/{name}", "id": "1"})

    def _preupload(self, repo: Repo, request: dict[str, Any]) -> None:
        files = []
        for one in request["files"]:
            held = repo.files.get(one["path"])
            large = one["size"] >= LARGE
            oid = None if held is None else hashlib.sha256(held).hexdigest() if large else blob_id(held)
            mode = "lfs" if large else "regular"
            files.append({"path": one["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self.json(200, {"files": files})

    def _batch(self, request: dict[str, Any]) -> None:
        objects = []
        for one in request["objects"]:
            actions = {
                "upload": {"href": f"{self.hub.url}/lfs/{one['oid']}", "header": {}},
                "verify": {"href": f"{self.hub.url}/lfs-verify"},
            }
            objects.append({**one, **({} if one["oid"] in self.hub.stored else {"actions": actions})})
        self.json(200, {"transfer": "basic", "objects": objects})

    def _commit(self, name: str, repo: Repo, lines: list[dict[str, Any]]) -> None:
        header = lines[0]["value"]
        if header.get("parentCommit") not in (None, repo.commit):
            self.json(412, {"error": "A commit has happened since. Please refresh and try again."})
            return
        for line in lines[1:]:
            value = line["value"]
            content = base64.b64decode(value["content"]) if line["key"] == "file" else self.hub.stored[value["oid"]]
            repo.files[value["path"]] = content
        repo.commit = hashlib.sha1(json.dumps(lines).encode(), usedforsecurity=False).hexdigest()
        self.hub.commits.append(header)
        self.json(
            200, {"commitUrl": f"{self.hub.url}/{name}/commit/{repo.commit}", "commitOid": repo.commit, "success": True}
        )

    def _is_refused(self) -> bool:
        for part, (status, says) in self.hub.refuses.items():
            if part in self._path():
                self.json(status, {"error": says}, says=says)
                return True
        return False

    def _is_hidden(self) -> bool:
        """Answer 401, and return True, where the repository is private to another owner."""
        owned = next((name for name, repo in self.hub.repos.items() if repo.private and name in self._path()), None)
        hidden = bool(owned) and self._owner() != owned.partition("/")[0]
        if hidden:
            self.json(401, {"error": "Repository not found"}, code="RepoNotFound")
        return hidden

    def _owner(self) -> str | None:
        return self.hub.owners.get((self.headers.get("Authorization") or "").removeprefix("Bearer "))

    def _path(self) -> str:
        return unquote(urlsplit(self.path).path).strip("/")

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body


@contextmanager
def taking_uploads(owners: dict[str, str]) -> Iterator[Uploads]:
    """A hub without repositories, at `url` until the block ends."""
    with serving({}, hub=Uploads({}, owners=owners), answers=_Uploading) as hub:
        yield hub
