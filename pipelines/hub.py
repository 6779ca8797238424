"""Whether a model of the Hugging Face hub can be had at all, found out within seconds and without fetching anything."""

import os
import socket
import time
from functools import lru_cache
from urllib.parse import urlsplit

PATIENCE = 3.0  # seconds for a connection
REMEMBERED = 60.0  # seconds that an answer holds
PROXIES = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")


def out_of_reach(repository: str, revision: str | None) -> str | None:
    """Why `repository` cannot be fetched, and what to do; None where it lies in the cache or where the hub answers."""
    from huggingface_hub import try_to_load_from_cache

    if isinstance(try_to_load_from_cache(repository, "config.json", revision=revision), str):
        return None
    do = "connect once, or set HF_HOME to a filled cache"
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return f"cannot reach the hub for {repository}: HF_HUB_OFFLINE is set; {do}."
    address = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    if any(os.environ.get(name) for name in PROXIES):  # the proxy's answer would say nothing of the hub
        return None
    host, port = address.hostname or "", address.port or (80 if address.scheme == "http" else 443)
    if _answers(host, port, int(time.monotonic() / REMEMBERED)):
        return None
    return f"cannot reach the hub for {repository}: {host} does not answer; {do}."


@lru_cache(maxsize=8)
def _answers(host: str, port: int, _moment: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=PATIENCE):
            return True
    except OSError:
        return False
