"""Reasoning in front of an answer: <think>…</think> as today's models write it, or a field of its own."""

import re

FIELDS = ("reasoning_content", "reasoning", "thinking")
_TAGGED = re.compile(r"\s*<(think|thinking)>(.*?)(?:</\1>|\Z)", re.DOTALL)
# DeepSeek-R1's template writes the opening tag itself, so an answer may hold the closing one alone
_ONLY_CLOSED = re.compile(r"(?P<thought>(?:(?!<think).)*?)\n?</think>[ \t]*(?:\n|\Z)", re.DOTALL)


def split(text: str) -> tuple[str | None, str]:
    """The reasoning in front of an answer (None: there is none; "" where its tags are empty), and the answer itself.

    Only what stands in front counts: tags in the middle of a text are part of it. A tag that is never closed means that the
    answer never came.
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
    """The answer with its reasoning in front, as models that think write it."""
    return f"<think>\n{thought}\n</think>\n\n{answer}"
