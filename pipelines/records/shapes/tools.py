"""Tool calls of all formats in one form: OpenAI's messages with `arguments` as an object, as chat
templates expect them."""

import json
import re
from typing import Any

CALL_ROLES = frozenset(("function_call", "tool_call", "tool_calls", "functioncall"))
RESULT_ROLES = frozenset(
    (
        "observation",
        "tool",
        "function",
        "tool_response",
        "tool_result",
        "function_response",
        "function_result",
        "ipython",
    )
)
CALL_PARTS = frozenset(("tool_call", "tool_use", "function_call"))
RESULT_PARTS = frozenset(("tool_result", "tool_response", "function_call_output"))
# Forms of a call in a model's text: ReAct, Hermes and Qwen, Glaive, Mistral, Llama 3, DeepSeek,
# Toolformer.
_ACT = r"(?:Action|행동)(?: \d+)?: ?[\w.-]+(?:\[[^\n]*\]|\([^\n]*\))?[ \t]*\n+"
IN_TEXT = re.compile(
    rf"^{_ACT}(?:Action Input|행동 입력|Observation|관찰)(?: \d+)?:|<tool_call>|<function_?calls?>|<invoke name=|"
    rf"<tool_response>"
    r"|^(?:Thought|Think):.*\n+Code:|<execute>|<<calc"
    r"|<\|tool|\[TOOL_CALLS\]|<\|python_tag\|>|<｜tool|✿FUNCTION✿|<\|channel\|>commentary to=|<\|call\|>|"
    r"<\|action_start\|>"
    r"|\[[A-Z]\w*\([^)\n]*\) ?(?:→|->)"
    # A call and its result on separate lines.
    r"|^(?:Action|Tool|Search\[[^\]\n]+\]).*\n(?:.*\n){0,3}?(?:Tool output|Tool result|Observation|Result|Output):"
    r"|<(search|gadget|api|calculator|tool|query)\b[^>\n]*>[^<\n]+</\1>\s*<(result|output|response|results)>"
    r"|^\s*(?:TOOL|FUNCTION|API) (?:RESPONSE|RESULT|OUTPUT):",
    re.MULTILINE,
)
# The form of Cohere's models.
FENCED_CALL = re.compile(r"^Action: ?```json", re.MULTILINE)
IN_CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`", re.DOTALL)


ASKS_FOR_JSON = re.compile(
    r"\bJSON\b|\bfunction[- ]call|\bschema\b|\bpayload\b|\bAPI (?:call|request)|함수 ?호출|스키마", re.IGNORECASE
)


def written_in(text: str, question: str = "") -> str | None:
    """The mark of a call in an answer's text outside code, or None.

    An answer that is one call may answer a question for JSON.
    """
    if (
        "<" not in text
        and "[" not in text
        and "Action:" not in text
        and "✿" not in text
        and not text.lstrip().startswith("{")
    ):
        return None
    if WHOLE_CALL.match(text) and is_call(text) and not ASKS_FOR_JSON.search(question):
        return "a call alone"
    match = FENCED_CALL.search(text) or IN_TEXT.search(IN_CODE.sub(" ", text))
    return match[0].split("\n")[0] if match else None


WHOLE_CALL = re.compile(r"\s*(?:\{.*\}|\[\s*[A-Za-z_][\w.]*\((?:\s*\w+\s*=.*)?\)\s*\])\s*\Z", re.DOTALL)


def is_call(text: str) -> bool:
    """Whether an answer is nothing but a call: {"name": …, "arguments": {…}}, or
    [function(argument=value)]."""
    value = as_data(text)
    if isinstance(value, dict):
        if value.get("tool_calls") or {"action", "action_input"} <= value.keys():
            return True
        name_keys = {"name", "function", "tool_name"} & value.keys()
        inner = value.get("parameters")
        if isinstance(inner, dict) and ({"properties", "type"} & inner.keys()):
            # The declaration of a tool.
            return False
        return (
            bool(name_keys) and value.keys() <= {*name_keys, "arguments", "parameters", "id", "type"} and len(value) > 1
        )
    return text.lstrip().startswith("[") and not isinstance(value, list)


def calls_of(turn: dict[str, Any]) -> list[dict[str, Any]]:
    """The calls of an OpenAI message: `tool_calls`, or the older `function_call`."""
    entries = as_data(turn.get("tool_calls")) or []
    calls = [call(each) for each in (entries if isinstance(entries, list) else [entries])]
    return calls + ([call(turn["function_call"])] if turn.get("function_call") else [])


def call(value: Any) -> dict[str, Any]:
    """One call as {"type": "function", "function": {"name", "arguments"}}, with any id."""
    value = as_data(value)
    if not isinstance(value, dict):
        return {"type": "function", "function": {"name": "", "arguments": value}}
    own_function = value.get("function")
    inner = own_function if isinstance(own_function, dict) else value
    arguments = next((inner[name] for name in ("arguments", "parameters", "input") if inner.get(name) is not None), {})
    entry = {"type": "function", "function": {"name": str(inner.get("name") or ""), "arguments": as_data(arguments)}}
    call_id = value.get("id") or value.get("tool_call_id")
    return {"id": str(call_id), **entry} if call_id else entry


def calls_in(text: str) -> list[dict[str, Any]]:
    """The calls in a function_call turn; a text that is not JSON counts as one call."""
    value = as_data(text)
    return [call(each) for each in (value if isinstance(value, list) else [value])]


def declared(value: Any) -> list[dict[str, Any]]:
    """The tools of a record as [{"type": "function", "function": {…}}]; [] if it has none."""
    value = as_data(value)
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        return []
    return [
        tool if isinstance(tool.get("function"), dict) else {"type": "function", "function": tool}
        for tool in map(as_data, value)
        if isinstance(tool, dict)
    ]


def as_data(value: Any) -> Any:
    """The object or list in a JSON text; any other value unchanged."""
    if not isinstance(value, str) or not value.lstrip().startswith(("{", "[")):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def names(calls: list[dict[str, Any]]) -> str:
    return ", ".join(each["function"]["name"] or "?" for each in calls)
