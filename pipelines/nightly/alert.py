"""Messages to a chat's webhook, if one is configured, in Slack's format (also for Mattermost,
Discord's /slack and others)."""

import http.client
import json
import os
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import urlsplit

WEBHOOK = "FEATHERWEIGHT_WEBHOOK_URL"
# In seconds.
PATIENCE = 10.0
LOOPBACK = ("127.0.0.1", "localhost", "::1")


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follows no redirects.

    A redirected POST would become a GET, of a login page instead of the webhook.
    """

    def redirect_request(self, *_args: Any, **_kwargs: Any) -> None:
        return None


def is_configured() -> bool:
    """Whether the environment names a webhook."""
    return bool(os.environ.get(WEBHOOK))


def post(text: str) -> str | None:
    """Send `text` to FEATHERWEIGHT_WEBHOOK_URL; returns the reason if that failed, else None.

    Also None without a configured webhook. The reason does not contain the URL, which is a secret.
    Never raises, because an alert must not add a failure to the one that it reports.
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
        # Only the system's part of the message, which has no URL in it.
        cause = getattr(error, "reason", error)
        because = getattr(cause, "strerror", None)
        return f"{WEBHOOK}: cannot be reached" + (f" ({because})" if because else "")
