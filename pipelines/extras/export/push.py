"""Upload of an export to the hub through huggingface_hub's public functions: first the plan, then
with `--yes` the upload.

One commit holds all files, so that a partial upload is never visible. The hub keeps the data of an
interrupted upload; the same command then sends the rest.
"""

import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from pipelines.errors import UsageError, WorkError
from pipelines.records.foreign_text import one_line
from pipelines.weights import hub

NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*\Z", re.ASCII)
TOKEN = "no token: set HF_TOKEN to one with write access, or log in with `.venv/bin/hf auth login`"
# Seconds to wait without a byte, since the hub may be storing a large file.
PATIENCE = 120.0
Say = Callable[[str], None]


@dataclass(frozen=True)
class Upload:
    """`name` is OWNER/NAME; `files` are the local files by their path in the repository."""

    name: str
    files: Mapping[str, Path]
    public: bool

    @property
    def bytes(self) -> int:
        return sum(path.stat().st_size for path in self.files.values())


@dataclass(frozen=True)
class Remote:
    """A repository of the hub: its commit, whether it is private, and its files."""

    commit: str | None
    private: bool
    files: frozenset[str]


def require_ready(name: str, *, yes: bool) -> None:
    """Check the preconditions of an upload before the export.

    Raises:
        UsageError: the name is invalid, or there is no token for the upload.
        WorkError: the hub is offline by configuration, or its settings are invalid.
    """
    if not NAME.match(name):
        raise UsageError(f"--push: got {name!r}; expected OWNER/NAME, such as my-name/my-model")
    if fault := "HF_HUB_OFFLINE is set" if hub.is_offline() else hub.misconfigured():
        raise WorkError(f"cannot ask the hub for {name}: {fault}")
    if yes and not _token():
        raise UsageError(f"--push {name}: {TOKEN}.")


def run(upload: Upload, *, yes: bool, say: Say) -> None:
    """Print the plan of the upload, and with `yes` perform it.

    Raises:
        UsageError: there is no token, or the repository is public without `upload.public`.
        WorkError: the hub cannot be reached or refuses the request.
    """
    require_ready(upload.name, yes=yes)
    remote = look(upload.name)
    for line in plan(upload, remote):
        say(line)
    if remote and not remote.private and not upload.public:
        raise UsageError(
            f"{upload.name} is public: anyone could see the upload. Confirm with --public, or name another repository."
        )
    if not yes:
        say("nothing was uploaded: --yes uploads it" + ("" if _token() else f"; {TOKEN}"))
        return
    say(f"uploaded: {send(upload, remote)}")


def _token() -> str | None:
    from huggingface_hub import get_token

    return get_token()


def look(name: str) -> Remote | None:
    """The repository of that name; None if it does not exist or our token has no access."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    with _translated_errors(name):
        try:
            info = HfApi().model_info(name, timeout=hub.SILENCE)
        except RepositoryNotFoundError:
            return None
    return Remote(info.sha, bool(info.private), frozenset(one.rfilename for one in info.siblings or ()))


def plan(upload: Upload, remote: Remote | None) -> Iterator[str]:
    """The plan of an upload, line by line."""
    if remote is None:
        kind = "public" if upload.public else "private"
        yield f"{upload.name}: the hub shows no such repository; a {kind} one would be created"
    else:
        stays = " and stays private (this can be changed on its page)" if remote.private and upload.public else ""
        yield f"{upload.name}: exists, {'private' if remote.private else 'public'}{stays}"
    for name, path in upload.files.items():
        there = ", replaces the existing file" if remote and name in remote.files else ""
        yield f"  {path.stat().st_size / 1e6:10.2f} MB  {name}{there}"
    yield f"  {upload.bytes / 1e6:10.2f} MB  in {len(upload.files)} files, as one commit"
    if remote and (others := sorted(remote.files - set(upload.files) - {".gitattributes"})):
        yield f"  {len(others)} other files there stay: {', '.join(others[:5])}{' …' if len(others) > 5 else ''}"


def send(upload: Upload, remote: Remote | None) -> str:
    """Upload everything as one commit on top of the commit in `remote`; returns the repository's
    address.

    Raises:
        WorkError: the hub cannot be reached or refuses the request.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi()
    with _translated_errors(
        upload.name, then="Nothing of this upload is visible there; the same command sends the rest"
    ):
        if remote is None:
            api.create_repo(upload.name, private=not upload.public, exist_ok=False)
        added = [CommitOperationAdd(name, str(path)) for name, path in upload.files.items()]
        commit = api.create_commit(
            upload.name,
            added,
            commit_message="Export by Featherweight",
            parent_commit=remote.commit if remote else None,
        )
    return str(commit.repo_url)


@contextmanager
def _translated_errors(name: str, *, then: str = "") -> Iterator[None]:
    """Turn any error of the hub's client into a WorkError without a token, followed by `then`."""
    from huggingface_hub.utils import get_session

    client = get_session()
    # By default the client would wait forever.
    before, client.timeout = client.timeout, PATIENCE
    try:
        # On a terminal the client's progress bars stay visible.
        with nullcontext() if sys.stderr.isatty() else hub.silence():
            yield
    except Exception as error:
        raise WorkError(". ".join(filter(None, (_why(error, name), then)))) from None
    finally:
        client.timeout = before


def _why(error: BaseException, name: str) -> str:
    """A message for the error or its cause. Server texts are scrubbed, since they may contain a
    token."""
    if "Invalid metadata" in str(error):
        return f"the hub rejects the front matter of README.md: {scrubbed(str(error))}"
    one: BaseException | None = error
    while one is not None:
        if message := hub.in_words(one, name, writes=True):
            return scrubbed(str(message), limit=600)
        one = one.__cause__
    return f"the client of the hub failed for {name} ({type(error).__name__}: {scrubbed(str(error))})"


def scrubbed(text: str, *, limit: int = 300) -> str:
    """A library's message on one line, without tokens."""
    if token := _token():
        text = text.replace(token, "…")
    return one_line(re.sub(r"hf_\w+", "…", " ".join(text.split())), limit)
