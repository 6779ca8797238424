"""The fake provider's answers: varied texts and verdicts that fit the requested schema."""

import json
import random
import re
from typing import Any

from tests.fakes.behavior import Behavior, Fault
from tests.fakes.wire import UNSUPPORTED, Answer, ModelRequest

ENGLISH_TEXT = (
    "quiet evening river garden letter window morning journey teacher winter little bright story friend paper mountain "
    "because although where there should could always often never before after under about gently slowly together "
    "reads writes keeps finds opens brings remembers the a this that every some people music bread market harbour"
)
KOREAN_TEXT = (
    "조용한 저녁에 강가를 걷다가 작은 책을 펼치면 마음이 가벼워집니다 친구와 함께 따뜻한 차를 마시며 이야기를 나누고 "
    "아침마다 창문을 열어 바람을 느끼면 하루가 천천히 시작됩니다 그래서 나는 겨울 산의 길과 오래된 편지를 자주 떠올리고 "
    "새로운 음악과 시장의 빵 냄새를 기억하면서 다시 글을 씁니다"
)
ENGLISH, KOREAN = ENGLISH_TEXT.split(), KOREAN_TEXT.split()
FORMATS = {
    "date": "2024-05-01",
    "date-time": "2024-05-01T12:00:00Z",
    "time": "12:00:00Z",
    "duration": "PT1H",
    "email": "reader@example.org",
    "hostname": "example.org",
    "uri": "https://example.org/page",
    "ipv4": "192.0.2.1",
    "ipv6": "2001:db8::1",
    "uuid": "00000000-0000-4000-8000-000000000000",
}


def compose(request: ModelRequest, behavior: Behavior, nth: int, fault: Fault | None) -> Answer:
    """The answer to the `nth` request with a prompt; equal for equal seeds."""
    text, stop, category = _Writer(request, behavior, nth).text(), "end", None
    if fault == "breaks_schema":
        text = _broken(request.schema)
    elif fault == "truncated":
        text, stop = text[: len(text) // 2], "length"
    elif fault == "empty":
        text = ""
    elif fault in ("refusal", "content_filter"):
        text, stop, category = "", fault, behavior.refusal_category
        if request.wire == "openai" and fault == "refusal":
            text = "I'm sorry, but I can't assist with that."
    limit = request.max_tokens if request.max_tokens is not None else 1 << 30
    reasoning = min(behavior.reasoning_tokens, limit)
    encoded = text.encode()
    output = max(1, len(encoded) // 4) + reasoning
    if output > limit or (stop == "length" and request.max_tokens is not None):
        text, stop, output = encoded[: (limit - reasoning) * 4].decode(errors="ignore"), "length", limit
    cached = int(request.input_tokens * behavior.cached_share)
    written = min(int(request.input_tokens * behavior.cache_write_share), request.input_tokens - cached)
    return Answer(text, stop, request.input_tokens, cached, written, output, reasoning, category)


def _broken(schema: dict[str, Any] | None) -> str:
    """JSON that `schema` does not allow."""
    closed = schema and (schema.get("required") or schema.get("additionalProperties") is False)
    return json.dumps({"unexpected": "field"} if closed else ["unexpected"])


class _Writer:
    """Writes one answer, determined by the seed, the prompt and the number of the request."""

    def __init__(self, request: ModelRequest, behavior: Behavior, nth: int) -> None:
        self._request, self._behavior = request, behavior
        self._random = random.Random(f"{behavior.seed}/{request.prompt}/{nth}")
        korean = "korean" in request.text.lower() or "한국어" in request.text
        self._words = KOREAN if korean else ENGLISH

    def text(self) -> str:
        schema = self._request.schema
        if schema is None:
            return self._sentence()
        root = self._resolved(schema)
        value = self._value(schema, 0)
        verdict = root.get("properties", {}).get("verdict")
        if isinstance(value, dict) and verdict and (enum := self._resolved(verdict).get("enum")):
            value["verdict"] = judged(self._behavior, self._request.prompt, enum, self._random)
        return json.dumps(value, ensure_ascii=False)

    def _sentence(self) -> str:
        count = max(1, round(self._behavior.answer_words * self._random.uniform(0.7, 1.3)))
        return " ".join(self._random.choices(self._words, k=count)).capitalize() + "."

    def _resolved(self, schema: dict[str, Any]) -> dict[str, Any]:
        """`schema` with its reference followed and its first alternative chosen."""
        while True:
            if "$ref" in schema:
                schema = self._referred(schema["$ref"])
            elif chosen := schema.get("anyOf") or schema.get("oneOf"):
                schema = next((one for one in chosen if one.get("type") != "null"), chosen[0])
            elif parts := schema.get("allOf"):
                schema = {**{k: v for k, v in schema.items() if k != "allOf"}, **_merged(map(self._resolved, parts))}
            else:
                return schema

    def _referred(self, reference: str) -> dict[str, Any]:
        node: Any = self._request.schema
        for name in reference.removeprefix("#").strip("/").split("/"):
            node = node[name] if name else node
        return node

    def _value(self, schema: dict[str, Any], depth: int) -> Any:
        schema = self._resolved(schema)
        schema = {**_described_limits(schema.get("description", "")), **schema}
        if "const" in schema:
            return schema["const"]
        if "enum" in schema:
            return self._random.choice(schema["enum"])
        kind = schema.get("type") or ("object" if "properties" in schema else "string")
        if isinstance(kind, list):
            kind = next((one for one in kind if one != "null"), "null")
        if kind == "object":
            return self._object(schema, depth)
        if kind == "array":
            return self._array(schema, depth)
        if kind in ("integer", "number"):
            return self._number(schema, kind)
        if kind == "boolean":
            return self._random.random() < 0.5
        return None if kind == "null" else self._string(schema)

    def _object(self, schema: dict[str, Any], depth: int) -> dict[str, Any]:
        required = schema.get("required", [])
        properties = schema.get("properties", {}).items()
        return {name: self._value(inner, depth + 1) for name, inner in properties if depth < 6 or name in required}

    def _array(self, schema: dict[str, Any], depth: int) -> list[Any]:
        low = schema.get("minItems", 0)
        high = schema.get("maxItems", max(low, 3))
        count = low if depth > 4 else self._random.randint(max(low, min(1, high)), max(low, min(high, low + 2)))
        return [self._value(schema.get("items") or {"type": "string"}, depth + 1) for _ in range(count)]

    def _number(self, schema: dict[str, Any], kind: str) -> float:
        step = schema.get("multipleOf", 1)
        low = schema.get("minimum", schema.get("exclusiveMinimum"))
        high = schema.get("maximum", schema.get("exclusiveMaximum"))
        low = (min(0, high - 10 * step) if high is not None else 0) if low is None else low
        high = low + 10 * step if high is None else high
        first = -(-low // step) + (1 if "exclusiveMinimum" in schema and low % step == 0 else 0)
        last = high // step - (1 if "exclusiveMaximum" in schema and high % step == 0 else 0)
        # No whole step fits between the two bounds.
        if first > last:
            return (low + high) / 2
        number = self._random.randint(int(first), int(last)) * step
        return int(number) if kind == "integer" else float(number)

    def _string(self, schema: dict[str, Any]) -> str:
        if (name := schema.get("format")) in FORMATS:
            return FORMATS[name]
        text, low, high = self._sentence(), schema.get("minLength", 0), schema.get("maxLength")
        while len(text) < low:
            text += " " + self._sentence()
        if high is not None and len(text) > high:
            text = text[:high]
            text = text[:-1] + "." if text.endswith(" ") else text
        return text


def _described_limits(description: str) -> dict[str, Any]:
    """The limits that anthropic.transform_schema moved into the description.

    They look like "{minLength: 3, maxLength: 9}".
    """
    if not description.endswith("}"):
        return {}
    limits = re.findall(r"(\w+): (-?[\d.]+)(?=[,}])", description[description.rindex("{") :])
    return {name: json.loads(number) for name, number in limits if name in UNSUPPORTED or name == "minItems"}


def _merged(parts: Any) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for part in parts:
        properties = {**schema.get("properties", {}), **part.get("properties", {})}
        required = [*schema.get("required", []), *part.get("required", [])]
        schema = {**schema, **part, **({"properties": properties, "required": required} if properties else {})}
    return schema


def judged(behavior: Behavior, prompt: str, verdicts: list[Any], rng: random.Random) -> Any:
    """The verdict by the behavior's rule.

    `longer` looks for two texts, each under a line or tag that names its verdict.
    """
    if callable(behavior.judge):
        return behavior.judge(prompt, verdicts)
    if behavior.judge == "random":
        return rng.choice(verdicts)
    lengths = _lengths_by_verdict(prompt, verdicts) if behavior.judge == "longer" else {}
    if len(lengths) < 2 or len(set(lengths.values())) == 1:
        return verdicts[0]
    return max(lengths, key=lengths.__getitem__)


def _lengths_by_verdict(prompt: str, verdicts: list[Any]) -> dict[Any, int]:
    """The length of the text below `A:`, `Answer A`, `[A]`, `## First answer` or `<answer_a>`."""
    marks = []
    for verdict in verdicts:
        pattern = rf"^[^\w\n/]*(?:[a-z]+[\s_-]+)?{re.escape(str(verdict))}(?:[\s_-]+[a-z]+)?[^\w\n]*?(?::|$|>)"
        if match := re.search(pattern, prompt, re.IGNORECASE | re.MULTILINE):
            marks.append((match.start(), match.end(), verdict))
    marks.sort(key=lambda mark: mark[0])
    ends = [*(mark[0] for mark in marks[1:]), len(prompt)]
    return {verdict: len(prompt[start:end].strip()) for (_, start, verdict), end in zip(marks, ends, strict=False)}
