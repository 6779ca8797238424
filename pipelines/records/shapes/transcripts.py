"""A dialogue in one text, already in a prompt or chat template, as messages."""

import re
from collections.abc import Iterator
from typing import NamedTuple

Turns = list[dict[str, str]]


class Transcript(NamedTuple):
    """The turns of a text (none if it is not a dialogue), and the text before the first, usually
    the template's own."""

    turns: Turns
    preamble: str = ""

    @property
    def notes(self) -> dict[str, int]:
        return {"texts in front of the first turn": 1} if self.preamble else {}


# The start of a turn in each template, with the speaker.
_CHATML = re.compile(r"<\|im_start\|>\s*(\w+)\n")
_LLAMA_3 = re.compile(r"<\|start_header_id\|>(\w+)<\|end_header_id\|>\s*")
_GEMMA = re.compile(r"<start_of_turn>(\w+)\n")
_HEADINGS = re.compile(
    r"#{2,4} ?(Human|User|Assistant|System|Instruction|Input|Context|Response|Question|Answer|Output|"
    r"질문|답변|답|명령어|명령|지시문?|입력|응답|출력)\s*:",
    re.IGNORECASE,
)
_NAMES = re.compile(r"(?:\A|\n+)\s*(Human|User|USER|Assistant|ASSISTANT|FUNCTION RESPONSE): ?")
_INST = re.compile(r"(\[/?INST\])")
_SYSTEM = re.compile(r"<<SYS>>(.*?)<</SYS>>", re.DOTALL)
_ENDS = re.compile(r"<\|im_end\|>|<\|eot_id\|>|<end_of_turn>|<\|end_?of_?text\|>|<\|begin_of_text\|>|</?s>|<bos>|<eos>")
_ROLES = {
    "human": "user", "instruction": "user", "question": "user", "질문": "user", "명령어": "user", "명령": "user", "지시": "user",
    "지시문": "user", "input": "input", "context": "input", "입력": "input", "response": "assistant", "answer": "assistant",
    "output": "assistant", "답변": "assistant", "답": "assistant", "응답": "assistant", "출력": "assistant", "model": "assistant",
    "function response": "tool",
}  # fmt: skip


def read(text: str) -> Transcript:
    """The dialogue in a text of a template: ChatML, Llama 2 and 3, Gemma, headings such as `###
    Human:` and `### Instruction:`, or names in front."""
    if "[INST]" in text:
        preamble, *pieces = _INST.split(text)
        return Transcript([turn for turn in _inside_inst(pieces) if turn["content"]], _bare(preamble))
    for opening in (_CHATML, _LLAMA_3, _GEMMA, _HEADINGS, _NAMES):
        preamble, *pieces = opening.split(text)
        if turns := _turns_of(pieces):
            return Transcript(turns, _bare(preamble))
    return Transcript([])


def _bare(text: str) -> str:
    return _ENDS.sub("", text).strip()


def _turns_of(pieces: list[str]) -> Turns:
    turns: Turns = []
    for name, text in zip(pieces[::2], pieces[1::2], strict=True):
        role, content = _ROLES.get(name.lower(), name.lower()), _bare(text)
        # The input of an instruction.
        if role == "input" and turns and turns[-1]["role"] == "user":
            turns[-1]["content"] += f"\n{content}" if content else ""
        else:
            turns.append({"role": "user" if role == "input" else role, "content": content})
    return turns if any(turn["role"] == "assistant" for turn in turns) else []


def _inside_inst(pieces: list[str]) -> Iterator[dict[str, str]]:
    for mark, text in zip(pieces[::2], pieces[1::2], strict=True):
        if mark == "[/INST]":
            yield {"role": "assistant", "content": _bare(text)}
            continue
        if system := _SYSTEM.search(text):
            yield {"role": "system", "content": system[1].strip()}
        yield {"role": "user", "content": _SYSTEM.sub("", text).strip()}
