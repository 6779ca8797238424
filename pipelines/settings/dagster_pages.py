"""Settings of Dagster's pages."""

import re
from typing import Annotated

from pydantic import AfterValidator, Field

from pipelines.settings.strict import Slug, Strict


def _is_owner(text: str) -> str:
    """Check that Dagster accepts the owner."""
    if not re.fullmatch(r"[A-Za-z0-9._%+-]+@[A-Za-z0-9.-]+\.[A-Za-z]{2,7}|team:\S.*", text):
        raise ValueError(f"got {text!r}; expected an e-mail address, or team:NAME such as team:research")
    return text


class Pages(Strict):
    """Content of Dagster's pages; it has no effect on results."""

    owners: list[Annotated[str, AfterValidator(_is_owner)]] = []
    """Owners of every asset: e-mail addresses, or team:NAME."""
    docs: Annotated[str, Field(pattern=r"^(https?://\S+)?$")] = ""
    """URL of docs/ for links; empty: pages name the files."""
    models: list[Slug] = []
    """Models that are partitions beside the profile's and those with runs."""
    methods: list[Slug] = []
    """Methods that are partitions beside the profile's and those with runs."""
