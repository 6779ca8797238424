"""Records as messages and as Alpaca blocks: the input of every prompt format."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

Message = dict[str, Any]
Shots = Sequence[Mapping[str, Any]]

ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
ALPACA_OPENING = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
)
ALPACA_TURN = "### Instruction:\n{instruction}\n\n### Response:\n"
# Stanford Alpaca's format, the usual one for tuning base models without a chat template.
ALPACA = ALPACA_OPENING + ALPACA_TURN


def spoken(messages: Sequence[Message]) -> list[dict[str, str]]:
    """Role and content of each message, as servers accept them."""
    return [{"role": message["role"], "content": message["content"]} for message in messages]


def is_learned(message: Mapping[str, Any]) -> bool:
    """Whether training learns this answer; a file may switch a turn off (`train: false`)."""
    return message.get("train") is not False


def alpaca_turns(record: Mapping[str, Any]) -> list[tuple[str, str, bool]]:
    """The prompt, the answer, and whether the answer is learned, turn by turn.

    A system prompt replaces the opening sentences. Later questions of a conversation are blocks
    without an opening.
    """
    if not record.get("messages"):
        form = ALPACA_WITH_INPUT if record["input"].strip() else ALPACA
        return [(form.format(instruction=record["instruction"], input=record["input"]), record["output"], True)]
    turns, opening, instruction = [], ALPACA_OPENING, ""
    for message in conversation(record):
        if message["role"] == "system":
            opening = f"{message['content']}\n\n"
        elif message["role"] == "assistant":
            turns.append(
                (opening + ALPACA_TURN.format(instruction=instruction), message["content"], is_learned(message))
            )
            opening = instruction = ""
        else:
            instruction = "\n\n".join(part for part in (instruction, message["content"]) if part)
    return turns


def alpaca_shots(shots: Shots) -> str:
    """The shots as blocks of the same format, each followed by an empty line."""
    return "".join(f"{prompt}{answer.strip()}\n\n" for shot in shots for prompt, answer, _ in alpaca_turns(shot))


def with_shots(messages: Sequence[Message], shots: Shots) -> list[Message]:
    """`messages` with the shots as turns after the system prompt; the shots' own system prompts are
    left out."""
    turns = [turn for shot in shots for turn in conversation(shot) if turn["role"] != "system"]
    first = 1 if messages and messages[0]["role"] == "system" else 0
    return [*messages[:first], *turns, *messages[first:]]


def without_system(messages: Sequence[Message]) -> list[Message]:
    """The messages with the system prompt, if there is one, moved to the start of the first
    question."""
    if not messages or messages[0]["role"] != "system":
        return list(messages)
    system, *rest = messages
    first = next((i for i, message in enumerate(rest) if message["role"] == "user"), None)
    if first is None:
        return rest
    merged = {**rest[first], "content": f"{system['content']}\n\n{rest[first]['content']}"}
    return [*rest[:first], merged, *rest[first + 1 :]]


def conversation(record: Mapping[str, Any]) -> list[Message]:
    """The record as chat messages, up to the assistant's last one."""
    if record.get("messages"):
        turns = [{**turn, "content": turn["content"].strip()} for turn in json.loads(record["messages"])]
        last = max(i for i, turn in enumerate(turns) if turn["role"] == "assistant")
        return turns[: last + 1]
    prompt = record["instruction"] + (f"\n\n{record['input']}" if record["input"].strip() else "")
    return [{"role": "user", "content": prompt.strip()}, {"role": "assistant", "content": record["output"].strip()}]


def tools_of(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The tools that a record declares, as cleaning stores them; [] if it declares none."""
    return json.loads(record["tools"]) if record.get("tools") else []


def calls_tools(messages: Sequence[Message]) -> bool:
    return any(message.get("tool_calls") or message["role"] == "tool" for message in messages)


def answer_of(message: Message) -> str:
    """The answer for a human reader: its text, and its calls as JSON."""
    calls = [json.dumps(call["function"], ensure_ascii=False) for call in message.get("tool_calls") or ()]
    return "\n".join(filter(None, (message["content"], *calls)))


def question(record: Mapping[str, Any]) -> str:
    """The prompt for a human reader."""
    if record.get("messages"):
        return "\n\n".join(f"{turn['role']}: {answer_of(turn)}" for turn in conversation(record)[:-1])
    return "\n\n".join(part for part in (record["instruction"], record["input"]) if part)
