"""News for the webhook, stored in the lake until it is sent, so that nothing is lost while the
webhook is down.

`data/lake/news/` has one file for each message, in order. A message is renamed before it is sent,
and renamed back if the webhook did not accept it. So each is sent at most once, even if the sender
is killed in between. Nobody waits: there is one try with each new message, and one every
RETRY_SECONDS after that. Only the newest MAX_MESSAGES messages are kept.
"""

import time
from pathlib import Path

from pipelines.errors import InUseError, WorkError
from pipelines.lake.files import locked, read_json, write_json
from pipelines.lake.paths import DataRoot
from pipelines.lake.run_ids import new_run_id
from pipelines.nightly import alert

MAX_MESSAGES = 100
# Messages of one try. Five answers of ten seconds each fit into a sensor's minute.
AT_ONCE = 5
RETRY_SECONDS = 300.0
SENDING = ".sending"
# The webhook refuses this message, but may accept the next one.
REFUSED = ("HTTP 400", "HTTP 413", "HTTP 422")


def tell(data: DataRoot, text: str) -> str | None:
    """Store `text` for the webhook, and try to send all stored messages. Returns the reason if
    something is unsent, else None.

    Also None without a configured webhook. Never raises, like `alert.post`.
    """
    if not alert.is_configured():
        return None
    try:
        folder = _folder(data)
        write_json(folder / f"{new_run_id(folder)}.json", {"text": text})
    except (OSError, WorkError):
        # A full disk is news, too.
        return alert.post(text)
    return deliver(data, now=True)


def deliver(data: DataRoot, *, now: bool = False) -> str | None:
    """Send the stored messages, the oldest first, until the webhook fails. Returns the reason if it
    fails.

    Unless `now`, there is no try within RETRY_SECONDS of the last one.
    """
    if not alert.is_configured() or not (waiting := _waiting(data)):
        return None
    last_try = _folder(data) / ".tried"
    try:
        if not now and last_try.exists() and abs(time.time() - last_try.stat().st_mtime) < RETRY_SECONDS:
            return None
        with locked(data.locks / "news.lock", "news", wait=False):
            last_try.touch()
            # Messages that are too old, and those whose sender was killed.
            for file in (*waiting[:-MAX_MESSAGES], *_folder(data).glob(f"*{SENDING}")):
                file.unlink(missing_ok=True)
            return next(filter(None, map(_send, _waiting(data)[:AT_ONCE])), None)
    except InUseError:
        # Another process is sending.
        return None
    except (OSError, WorkError) as error:
        return f"{alert.WEBHOOK}: stored news cannot be sent now: {error}"


def _send(file: Path) -> str | None:
    """Send one message; returns the reason if that failed.

    Unless the webhook refuses this message, it stays stored then.
    """
    sending = file.with_suffix(SENDING)
    file.rename(sending)
    message = read_json(sending)
    problem = alert.post(message["text"]) if message else None
    if problem and not problem.endswith(REFUSED):
        sending.rename(file)
    else:
        sending.unlink()
    return problem


def _folder(data: DataRoot) -> Path:
    return data.lake / "news"


def _waiting(data: DataRoot) -> list[Path]:
    return sorted(_folder(data).glob("*.json"))
