"""Reasoning in front of an answer: <think>…</think> in today's models, or a separate field."""

import re

FIELDS = ("reasoning_content", "reasoning", "thinking")
_TAGGED = re.compile(r"\s*<(think|thinking)>(.*?)(?:</\1>|\Z)", re.DOTALL)
# DeepSeek-R1's template writes the opening tag itself, so an answer may have only the closing one.
_ONLY_CLOSED = re.compile(r"(?P<thought>(?:(?!<think).)*?)\n?</think>[ \t]*(?:\n|\Z)", re.DOTALL)


def split(text: str) -> tuple[str | None, str]:
    """The reasoning in front of an answer (None if there is none, "" if its tags are empty), and
    the answer itself.

    Tags in the middle of a text belong to the text. A tag that is never closed means that the
    answer is missing.
    """
    if "think" not in text:
        return None, text
    thoughts: list[str] = []
    while match := _TAGGED.match(text):
        thoughts.append(match[2].strip())
        text = text[match.end() :].lstrip()
    if not thoughts and (match := _ONLY_CLOSED.match(text)):
        thoughts.append(match["thought"].strip())
        text = text[match.end() :].lstrip()
    return ("\n\n".join(thoughts), text) if thoughts else (None, text)


def joined(thought: str, answer: str) -> str:
    """The answer with its reasoning in front, in the form of reasoning models."""
    return f"<think>\n{thought}\n</think>\n\n{answer}"
