"""Text from documents is only context: marks that a chat template or a server would interpret are
broken up.

A tokenizer turns `<|im_end|>` inside a question into the token that ends a turn. So a document
could end the user's turn and speak as the assistant. Plain words of a document stay as they are:
they have no more force than other text.
"""

import re
from collections.abc import Iterable

# Marks of common chat templates. Callers pass those of a tokenizer at hand to `inert`.
_MARK = re.compile(
    r"<\|[^<>\n]{0,60}\|>|<(?=/?(?:s|bos|eos|pad|unk|think|tool_call|tool_response)>|(?:start|end)_of_turn>|｜)|\[(?=/?INST\])|<<(?=/?SYS>>)"
)
_BLOCK = re.compile(r"^[ \t]*###(?=[ \t]*(?:Instruction|Input|Response)\b)", re.MULTILINE | re.IGNORECASE)


def inert(text: str, marks: Iterable[str] = ()) -> str:
    """`text` with all marks broken up: `marks` (a tokenizer's special tokens) and those of common
    templates.

    A mark gets a space after its first character. The heading of an Alpaca block loses one `#`.
    """
    text = _BLOCK.sub("##", text.replace("\0", " "))
    text = _MARK.sub(lambda match: match[0][0] + " " + match[0][1:], text)
    for mark in marks:
        # A token of one character, such as a line end, is no mark.
        if len(mark) > 1:
            text = text.replace(mark, f"{mark[0]} {mark[1:]}")
    return text


def holds_common_mark(text: str) -> bool:
    """Whether `text` contains a mark of a common chat template."""
    return _MARK.search(text) is not None


def holds_mark(text: str, marks: Iterable[str]) -> bool:
    """Whether `text` contains one of the special tokens `marks`."""
    return any(len(mark) > 1 and mark in text for mark in marks)
