"""An export uploaded to the hub, through huggingface_hub's public functions: first what would be done, then, told so, doing it.

One commit holds all files, so that nobody ever sees half of them. What a broken upload has sent already the hub keeps, and the
same command again sends the rest.
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
TOKEN = "no token: set HF_TOKEN to one that may write, or log in with `.venv/bin/hf auth login`"
PATIENCE = 120.0  # seconds without a byte, of a hub that may be putting a large file away
Say = Callable[[str], None]


@dataclass(frozen=True)
class Upload:
    """`name`: OWNER/NAME; `files`: what goes there, by the path in the repository."""

    name: str
    files: Mapping[str, Path]
    public: bool

    @property
    def bytes(self) -> int:
        return sum(path.stat().st_size for path in self.files.values())


@dataclass(frozen=True)
class Remote:
    """What the hub has under a name: the commit, whether it is private, and its files."""

    commit: str | None
    private: bool
    files: frozenset[str]


def require_ready(name: str, *, yes: bool) -> None:
    """What can be known before anything is exported.

    Raises:
        UsageError: it is no repository's name, or there is no token to upload with.
        WorkError: the hub is not to be asked, or its settings cannot be used.
    """
    if not NAME.match(name):
        raise UsageError(f"--push: got {name!r}; expected OWNER/NAME, such as my-name/my-model")
    if fault := "HF_HUB_OFFLINE is set" if hub.is_offline() else hub.misconfigured():
        raise WorkError(f"cannot ask the hub for {name}: {fault}")
    if yes and not _token():
        raise UsageError(f"--push {name}: {TOKEN}.")


def run(upload: Upload, *, yes: bool, say: Say) -> None:
    """Say what would be uploaded, and with `yes` do it.

    Raises:
        UsageError: there is no token, or the repository is public and that was not asked for.
        WorkError: the hub cannot be reached, or refuses.
    """
    require_ready(upload.name, yes=yes)
    remote = look(upload.name)
    for line in plan(upload, remote):
        say(line)
    if remote and not remote.private and not upload.public:
        raise UsageError(
            f"{upload.name} is public: anyone would see this. --public says that it may be so, or name another one."
        )
    if not yes:
        say("nothing was uploaded: --yes does it" + ("" if _token() else f"; {TOKEN}"))
        return
    say(f"uploaded: {send(upload, remote)}")


def _token() -> str | None:
    from huggingface_hub import get_token

    return get_token()


def look(name: str) -> Remote | None:
    """What the hub has under the name; None where it shows nothing: there is none, or nobody with our token may see it."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    with _in_our_words(name):
        try:
            info = HfApi().model_info(name, timeout=hub.SILENCE)
        except RepositoryNotFoundError:
            return None
    return Remote(info.sha, bool(info.private), frozenset(one.rfilename for one in info.siblings or ()))


def plan(upload: Upload, remote: Remote | None) -> Iterator[str]:
    """What an upload would do, line by line."""
    if remote is None:
        kind = "public" if upload.public else "private"
        yield f"{upload.name}: the hub shows no such repository; it would be made, {kind}"
    else:
        stays = " and stays so (its page on the hub changes that)" if remote.private and upload.public else ""
        yield f"{upload.name}: is there, {'private' if remote.private else 'public'}{stays}"
    for name, path in upload.files.items():
        there = ", in the place of the one there" if remote and name in remote.files else ""
        yield f"  {path.stat().st_size / 1e6:10.2f} MB  {name}{there}"
    yield f"  {upload.bytes / 1e6:10.2f} MB  in {len(upload.files)} files, as one commit"
    if remote and (others := sorted(remote.files - set(upload.files) - {".gitattributes"})):
        yield f"  {len(others)} other files there stay: {', '.join(others[:5])}{' …' if len(others) > 5 else ''}"


def send(upload: Upload, remote: Remote | None) -> str:
    """Upload everything as one commit, on top of what `look` saw; the address of the repository.

    Raises:
        WorkError: the hub cannot be reached, or refuses.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi()
    with _in_our_words(upload.name, then="Nothing of this upload is shown there; the same again sends what is missing"):
        if remote is None:
            api.create_repo(upload.name, private=not upload.public, exist_ok=False)
        added = [CommitOperationAdd(name, str(path)) for name, path in upload.files.items()]
        made = api.create_commit(
            upload.name,
            added,
            commit_message="Export by Featherweight",
            parent_commit=remote.commit if remote else None,
        )
    return str(made.repo_url)


@contextmanager
def _in_our_words(name: str, *, then: str = "") -> Iterator[None]:
    """Raises WorkError for whatever the hub's client raises, with `then` behind it. No token stands in it."""
    from huggingface_hub.utils import get_session

    client = get_session()
    before, client.timeout = client.timeout, PATIENCE  # it would wait for ever
    try:
        with nullcontext() if sys.stderr.isatty() else hub.silence():  # its bars show how far an upload is
            yield
    except Exception as error:
        raise WorkError(". ".join(filter(None, (_why(error, name), then)))) from None
    finally:
        client.timeout = before


def _why(error: BaseException, name: str) -> str:
    """The error in words, or that which it came from. What a server says may hold anything, a token too."""
    if "Invalid metadata" in str(error):
        return f"the hub does not take the head of README.md: {scrubbed(str(error))}"
    one: BaseException | None = error
    while one is not None:
        if because := hub.in_words(one, name, writes=True):
            return scrubbed(str(because), limit=600)
        one = one.__cause__
    return f"the client of the hub failed for {name} ({type(error).__name__}: {scrubbed(str(error))})"


def scrubbed(text: str, *, limit: int = 300) -> str:
    """What a library says, on one line and without a token."""
    if token := _token():
        text = text.replace(token, "…")
    return one_line(re.sub(r"hf_\w+", "…", " ".join(text.split())), limit)
