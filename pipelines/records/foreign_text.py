"""Text from others (providers, models, hubs), made safe for terminals, logs and Dagster events."""

import re

# Characters that control a terminal, or hide or reorder text: control characters except tab and
# line feed, line and paragraph separators, bidirectional marks and overrides, invisible characters
# (except the joiners, which emoji and scripts need), and lone surrogates.
CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)


def plain(text: str, limit: int = 2000) -> str:
    """`text` without control characters (ANSI codes, bidirectional overrides), cut at `limit`."""
    clean = CONTROL.sub("\ufffd", text)
    return clean if len(clean) <= limit else clean[:limit] + f" … ({len(text):,} characters in all)"


def one_line(text: str, limit: int) -> str:
    """Plain text on one line, which cannot imitate a line of our own output."""
    return plain(text, limit).replace("\n", " ")
