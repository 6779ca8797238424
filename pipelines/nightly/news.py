"""News for the webhook: kept in the lake until it is sent, so that a webhook that was down gets it when it is back.

`data/lake/news/` holds a file for each message, in order. A message gets another name before it is sent, and its own back where
the webhook did not take it. So each is sent once, also where the sender is killed in between. Nobody waits: one try is made
with each new message, and one every RETRY_SECONDS after. The newest MAX_MESSAGES messages are kept.
"""

import time
from pathlib import Path

from pipelines.errors import InUseError, WorkError
from pipelines.lake.files import locked, read_json, write_json
from pipelines.lake.paths import DataRoot
from pipelines.lake.run_ids import new_run_id
from pipelines.nightly import alert

MAX_MESSAGES = 100
AT_ONCE = 5  # messages of one try: five answers that take ten seconds each end within a sensor's minute
RETRY_SECONDS = 300.0
SENDING = ".sending"
REFUSED = ("HTTP 400", "HTTP 413", "HTTP 422")  # of this message; the next one may do


def tell(data: DataRoot, text: str) -> str | None:
    """Keep `text` for the webhook, and try to send all that is kept. Returns why it is not sent yet; None where it is, or where no
    webhook is configured. Never raises, as `alert.post`."""
    if not alert.is_configured():
        return None
    try:
        folder = _folder(data)
        write_json(folder / f"{new_run_id(folder)}.json", {"text": text})
    except (OSError, WorkError):
        return alert.post(text)  # a full disk is news, too
    return deliver(data, now=True)


def deliver(data: DataRoot, *, now: bool = False) -> str | None:
    """Send what is kept, the oldest first, until the webhook does not take one. Returns why something is left. Unless `now`,
    nothing is tried within RETRY_SECONDS of the last try."""
    if not alert.is_configured() or not (waiting := _waiting(data)):
        return None
    last_try = _folder(data) / ".tried"
    try:
        if not now and last_try.exists() and abs(time.time() - last_try.stat().st_mtime) < RETRY_SECONDS:
            return None
        with locked(data.locks / "news.lock", "news", wait=False):
            last_try.touch()
            for file in (
                *waiting[:-MAX_MESSAGES],
                *_folder(data).glob(f"*{SENDING}"),
            ):  # too old, or its sender was killed
                file.unlink(missing_ok=True)
            return next(filter(None, map(_send, _waiting(data)[:AT_ONCE])), None)
    except InUseError:
        return None  # somebody else is sending
    except (OSError, WorkError) as error:
        return f"{alert.WEBHOOK}: news that is kept cannot be sent now: {error}"


def _send(file: Path) -> str | None:
    """Send one message; returns why it was not taken, and then it is kept."""
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
