"""A message to a chat's webhook (Slack's form, which Mattermost, Discord's /slack and others take), where one is configured."""

import http.client
import json
import os
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import urlsplit

WEBHOOK = "FEATHERWEIGHT_WEBHOOK_URL"
PATIENCE = 10.0  # seconds
LOOPBACK = ("127.0.0.1", "localhost", "::1")


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirected POST becomes a GET, which tells nobody anything: a login page, not the webhook."""

    def redirect_request(self, *_args: Any, **_kwargs: Any) -> None:
        return None


def is_configured() -> bool:
    """Whether a webhook is named."""
    return bool(os.environ.get(WEBHOOK))


def post(text: str) -> str | None:
    """Send `text` to FEATHERWEIGHT_WEBHOOK_URL. Returns why it could not be sent, without the address, which is a secret; None
    where it was sent or where no webhook is configured. Never raises: an alert must not add a failure to the one it tells of.
    """
    url = os.environ.get(WEBHOOK)
    if not url:
        return None
    body = json.dumps({"text": text}).encode()
    try:
        address = urlsplit(url)
        if address.scheme != "https" and not (address.scheme == "http" and address.hostname in LOOPBACK):
            return f"{WEBHOOK}: expected an https:// address (http only on this machine)"
        request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=PATIENCE):
            return None
    except urllib.error.HTTPError as error:
        return f"{WEBHOOK}: the webhook answered HTTP {error.code}"
    except (OSError, ValueError, http.client.HTTPException) as error:
        # of the error's own words only the system's, which hold no address
        cause = getattr(error, "reason", error)
        because = getattr(cause, "strerror", None)
        return f"{WEBHOOK}: cannot be reached" + (f" ({because})" if because else "")
