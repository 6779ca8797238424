"""Text from documents is context and nothing else: what a chat template or a server would take for a mark of its own is broken up.

A tokenizer turns `<|im_end|>` inside a question into the token that ends a turn, so that a document could close the user's turn and
speak as the assistant. What a document says in plain words stays as it is: no prompt obeys it more than any other text.
"""

import re
from collections.abc import Iterable

# of common chat templates; those of a tokenizer at hand are named to `inert` besides
_MARK = re.compile(
    r"<\|[^<>\n]{0,60}\|>|<(?=/?(?:s|bos|eos|pad|unk|think|tool_call|tool_response)>|(?:start|end)_of_turn>|｜)|\[(?=/?INST\])|<<(?=/?SYS>>)"
)
_BLOCK = re.compile(r"^[ \t]*###(?=[ \t]*(?:Instruction|Input|Response)\b)", re.MULTILINE | re.IGNORECASE)


def inert(text: str, marks: Iterable[str] = ()) -> str:
    """`text` with its `marks` (a tokenizer's special tokens) and those of common templates broken up by a space, and without a line
    that opens one of Alpaca's blocks."""
    text = _BLOCK.sub("##", text.replace("\0", " "))
    text = _MARK.sub(lambda match: match[0][0] + " " + match[0][1:], text)
    for mark in marks:
        if len(mark) > 1:  # a token of one character, such as a line's end, is no mark
            text = text.replace(mark, f"{mark[0]} {mark[1:]}")
    return text


def holds_common_mark(text: str) -> bool:
    """Whether a mark of a common chat template stands in `text`."""
    return _MARK.search(text) is not None


def holds_mark(text: str, marks: Iterable[str]) -> bool:
    """Whether a special token stands in `text`."""
    return any(len(mark) > 1 and mark in text for mark in marks)
