"""The Hugging Face hub: whether it is reachable, the content of its cache, and its errors in words.

All answers take seconds, even without a network.
"""

import os
import re
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit
from urllib.request import proxy_bypass

# Seconds to wait for a connection.
PATIENCE = 3.0
# Seconds without a byte after which a connection counts as lost.
SILENCE = 10.0
# Seconds for which an answer stays valid.
REMEMBERED = 60.0
PROXIES = {
    "https": ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"),
    "http": ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"),
}


def out_of_reach(repository: str, revision: str | None) -> str | None:
    """Why `repository` cannot be fetched, with a remedy; None if the cache has it or the hub
    answers."""
    # With such an endpoint the hub's client cannot even be imported.
    if not _is_address(_endpoint(), ("http", "https")):
        return f"cannot ask the hub for {repository}: {misconfigured()}."
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        if isinstance(try_to_load_from_cache(repository, "config.json", revision=revision), str):
            return None
    except HFValidationError as error:
        return str(in_words(error, repository))
    advice = "connect once, or set HF_HOME to a filled cache"
    if is_offline():
        return f"cannot reach the hub for {repository}: HF_HUB_OFFLINE is set; {advice}."
    if fault := misconfigured():
        return f"cannot ask the hub for {repository}: {fault}."
    # A proxy's answer would say nothing about the hub.
    if _proxy():
        return None
    address = urlsplit(_endpoint())
    host, port = address.hostname or "", address.port or (80 if address.scheme == "http" else 443)
    if _answers(host, port, int(time.monotonic() / REMEMBERED)):
        return None
    return f"cannot reach the hub for {repository}: {host} does not answer; {advice}."


def misconfigured() -> str | None:
    """The first unusable setting for the hub in the environment, with the expected value; None if
    all are usable.

    The message shows no value, since a value may hold a key.
    """
    if not _is_address(_endpoint(), ("http", "https")):
        return "HF_ENDPOINT is no address: expected http://HOST:PORT or https://HOST, or nothing"
    if fault := _fault_of_proxy():
        return fault
    token = os.environ.get("HF_TOKEN", "").strip()
    if not token.isascii() or any(not letter.isprintable() or letter.isspace() for letter in token):
        return "HF_TOKEN holds a character that no token has, such as a line break: copy it again"
    return _fault_of_certificates()


def _fault_of_proxy() -> str | None:
    if not (name := _proxy()):
        return None
    value = os.environ[name]
    address = value if "://" in value else f"http://{value}"
    if not _is_address(address, ("http", "https", "socks5", "socks5h")):
        return f"{name} is no proxy's address: expected http://HOST:PORT, or nothing"
    if address.startswith("socks") and find_spec("socksio") is None:
        return f"{name} names a SOCKS proxy, which needs a package: `pip install socksio`, or name an HTTP proxy"
    return None


def _fault_of_certificates() -> str | None:
    file, folders = os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR")
    if file and not _holds_certificates(Path(file)):
        return "SSL_CERT_FILE names no file with certificates: name one, or nothing"
    if folders and not file and not any(Path(folder).is_dir() for folder in folders.split(os.pathsep)):
        return "SSL_CERT_DIR names no folder that exists: name one that holds certificates, or nothing"
    return None


def _holds_certificates(file: Path) -> bool:
    try:
        ssl.create_default_context(cafile=file)
    # It does not exist, is a folder, or holds no certificates.
    except OSError:
        return False
    return True


def _endpoint() -> str:
    return os.environ.get("HF_ENDPOINT") or "https://huggingface.co"


def _proxy() -> str | None:
    """The environment variable that names the proxy for the hub; None if there is none or NO_PROXY
    excludes the hub."""
    if proxy_bypass(urlsplit(_endpoint()).hostname or ""):
        return None
    names = PROXIES["http" if _endpoint().startswith("http:") else "https"]
    return next((name for name in names if os.environ.get(name)), None)


def _is_address(text: str, schemes: tuple[str, ...]) -> bool:
    try:
        address = urlsplit(text)
        return address.scheme in schemes and bool(address.hostname) and address.port != 0 and not re.search(r"\s", text)
    except ValueError:
        return False


def is_offline() -> bool:
    """Whether the environment forbids requests to the hub."""
    return any(
        os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE")
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
    )


def cached_folder(repository: str, revision: str | None) -> Path | None:
    """The folder of the revision in the hub's cache; None if the cache has no configuration of
    it."""
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(repository, "config.json", revision=revision)
    return Path(path).parent if isinstance(path, str) else None


class Refusal(NamedTuple):
    """Why the hub refused or failed, with a remedy. `final`: a second try would end the same
    way."""

    words: str
    final: bool

    def __str__(self) -> str:
        return self.words


def dataset_refused(name: str) -> Refusal | None:
    """Why the hub refuses a dataset, after one request of at most SILENCE; None if it does not, or
    in offline mode."""
    from huggingface_hub import HfApi

    if is_offline():
        return None
    if fault := misconfigured():
        return Refusal(fault, final=False)
    try:
        HfApi().dataset_info(name, timeout=SILENCE)
    except Exception as error:
        if (because := in_words(error, name)) is None:
            raise
        return because
    return None


@contextmanager
def short_timeout() -> Iterator[None]:
    """Inside the context, the hub's client gives up on a download after about 25 seconds without a
    byte.

    The client tries six times and would wait ten seconds each time. HF_HUB_DOWNLOAD_TIMEOUT takes
    precedence if it is set.
    """
    from huggingface_hub import constants

    before = constants.HF_HUB_DOWNLOAD_TIMEOUT
    if "HF_HUB_DOWNLOAD_TIMEOUT" not in os.environ:
        constants.HF_HUB_DOWNLOAD_TIMEOUT = PATIENCE
    try:
        yield
    finally:
        constants.HF_HUB_DOWNLOAD_TIMEOUT = before


@contextmanager
def cache_only() -> Iterator[None]:
    """Inside the context, `datasets` uses its cache only; otherwise it waits minutes for a hub that
    does not answer."""
    from datasets import config
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE, config.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE, config.HF_HUB_OFFLINE = before


def in_words(error: BaseException, repository: str, *, writes: bool = False) -> Refusal | None:
    """An error of the hub's client in words, without headers or tokens; None for any other error.

    `writes`: the request was an upload.
    """
    import httpx2
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if isinstance(error, GatedRepoError):
        own = (
            "see that HF_TOKEN is of the account that did, with access to gated models" if _token() else "set HF_TOKEN"
        )
        return Refusal(
            f"{repository} is gated: accept its terms on its page, and {own}{_hub_message(error)}", final=True
        )
    if isinstance(error, RepositoryNotFoundError):
        return Refusal(f"the hub knows no {repository}: check the name; a private one needs HF_TOKEN", final=True)
    if isinstance(error, RevisionNotFoundError):
        return Refusal(f"{repository} has no such revision: name a branch, a tag or a commit of it", final=True)
    if isinstance(error, HfHubHTTPError):
        return _http_refusal(error, repository, _writing(repository) if writes else _READING)
    if isinstance(error, (OfflineModeIsEnabled, LocalEntryNotFoundError)):
        return Refusal(
            f"the hub is not asked for {repository} (HF_HUB_OFFLINE): connect once, or fill its cache", final=True
        )
    if isinstance(error, httpx2.TimeoutException):
        return Refusal(
            f"the hub does not answer for {repository}: nothing came for a while; try again later", final=False
        )
    if isinstance(error, HFValidationError):
        return Refusal(f"{repository!r} is no repository name: expected owner/name, as on its page", final=True)
    if isinstance(error, (httpx2.RequestError, httpx2.InvalidURL)):
        kind, through = type(error).__name__, f" through the proxy of {name}" if (name := _proxy()) else ""
        return Refusal(
            f"the connection to the hub{through} was lost for {repository} ({kind}): connect, and try again",
            final=False,
        )
    return None


_UNSET = "it takes a token: set HF_TOKEN"
# HTTP status → the advice with a token, and without one.
_READING = {
    401: ("the hub does not accept HF_TOKEN: make a new one", _UNSET),
    403: ("HF_TOKEN may not read it: give it that permission in its settings on the hub", _UNSET),
    404: ("there is no such file: check the name and the revision",) * 2,
}


def _writing(repository: str) -> dict[int, tuple[str, str]]:
    owner = repository.partition("/")[0]
    lost = "somebody changed it at the same moment: the same command again first looks at its present state"
    advice = {
        401: "the hub does not accept the token: make a new one that may write",
        402: f"{owner} has no room left for it: make some, or name another owner",
        403: f"the token may not write there: give it that permission, or name an owner other than {owner}",
        404: "it was removed meanwhile: the same command again creates it",
        409: lost,
        412: lost,
        413: "a file is too large for it",
    }
    return {status: (text, text) for status, text in advice.items()}


def _http_refusal(error: Exception, repository: str, advice_by_status: dict[int, tuple[str, str]]) -> Refusal:
    status = error.response.status_code  # type: ignore[attr-defined]
    busy = "too many requests: wait some minutes; with HF_TOKEN set the limit is higher"
    fault = "the hub has an internal error: try again later" if status >= 500 else "check the name and the revision"
    advice = busy if status == 429 else advice_by_status.get(status, (fault, fault))[0 if _token() else 1]
    return Refusal(f"the hub refuses {repository} (HTTP {status}): {advice}{_hub_message(error)}", final=status < 500)


def _token() -> bool:
    return bool(os.environ.get("HF_TOKEN"))


def _hub_message(error: Exception) -> str:
    """The hub's own message, on one line."""
    message = re.sub(r"\s+", " ", error.response.headers.get("x-error-message") or "").strip()  # type: ignore[attr-defined]
    return f" (it says: {message:.200})" if message else ""


@contextmanager
def silence() -> Iterator[None]:
    """Turn off the client's progress bars and warnings; we report what matters ourselves."""
    from huggingface_hub.utils import disable_progress_bars, enable_progress_bars, logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    disable_progress_bars()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        enable_progress_bars()


@lru_cache(maxsize=8)
def _answers(host: str, port: int, _moment: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=PATIENCE):
            return True
    except OSError:
        return False
