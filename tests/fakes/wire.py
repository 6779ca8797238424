"""Both protocols on the wire: their requests, and the bodies of answers and errors."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from tests.fakes.behavior import Behavior, ErrorFault, Wire

PROMPT_OVERHEAD = 8
# Keywords that Anthropic's structured outputs refuse (anthropic.transform_schema moves them into
# the description).
UNSUPPORTED = {
    "minLength", "maxLength", "pattern", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf",
    "maxItems", "uniqueItems", "oneOf", "patternProperties", "minProperties", "maxProperties",
}  # fmt: skip
QUOTA = (
    "You exceeded your current quota, please check your plan and billing details. For more information on this error, "
    "read the docs: https://platform.openai.com/docs/guides/error-codes/api-errors."
)
# By fault: OpenAI's (status, type, code, message) and Anthropic's (status, type, details'
# error_code, message).
ERRORS: dict[ErrorFault, dict[Wire, tuple[int, str, str | None, str]]] = {
    "overloaded": {
        "openai": (503, "server_error", None, "The engine is currently overloaded, please try again later"),
        "anthropic": (529, "overloaded_error", None, "Overloaded"),
    },
    "server_error": {
        "openai": (
            500,
            "server_error",
            None,
            "The server had an error while processing your request. Sorry about that!",
        ),
        "anthropic": (500, "api_error", None, "Internal server error"),
    },
    "unavailable": {
        "openai": (503, "server_error", None, "Service unavailable"),
        "anthropic": (503, "api_error", None, "Service unavailable"),
    },
    "rate_limited": {
        "openai": (429, "requests", "rate_limit_exceeded", "Rate limit reached for {model} on requests per min (RPM)."),
        "anthropic": (429, "rate_limit_error", None, "This request would exceed your organization's rate limit."),
    },
    "unauthorized": {
        "openai": (401, "invalid_request_error", "invalid_api_key", "Incorrect API key provided: {key}."),
        "anthropic": (401, "authentication_error", None, "invalid x-api-key: {key}"),
    },
    "forbidden": {
        "openai": (403, "invalid_request_error", None, "You are not allowed to sample from this model"),
        "anthropic": (403, "permission_error", None, "Your API key does not have permission to use the resource."),
    },
    "unknown_model": {
        "openai": (
            404,
            "invalid_request_error",
            "model_not_found",
            "The model `{model}` does not exist or you do not have access to it.",
        ),
        "anthropic": (404, "not_found_error", None, "model: {model}"),
    },
    "not_found": {
        "openai": (404, "invalid_request_error", None, "Not found"),
        "anthropic": (404, "not_found_error", None, "Not found"),
    },
    "invalid_request": {
        "openai": (400, "invalid_request_error", None, "Invalid request"),
        "anthropic": (400, "invalid_request_error", None, "Invalid request"),
    },
    "insufficient_quota": {
        "openai": (429, "insufficient_quota", "insufficient_quota", QUOTA),
        "anthropic": (402, "billing_error", None, "There is a problem with your organization's billing."),
    },
    "credit_too_low": {
        "openai": (
            400,
            "invalid_request_error",
            "billing_hard_limit_reached",
            "Billing hard limit has been reached.",
        ),
        "anthropic": (
            400,
            "invalid_request_error",
            None,
            "Your credit balance is too low to access the Anthropic API. "
            "Please go to Plans & Billing to upgrade or purchase credits.",
        ),
    },
    "spend_limit": {
        "openai": (429, "insufficient_quota", "insufficient_quota", QUOTA),
        "anthropic": (
            429,
            "rate_limit_error",
            "enforced_spend_limit_reached",
            "You have reached your specified spend limit.",
        ),
    },
}
OPENAI_FINISH = {"end": "stop", "length": "length", "refusal": "stop", "content_filter": "content_filter"}
ANTHROPIC_STOP = {"end": "end_turn", "length": "max_tokens", "refusal": "refusal", "content_filter": "refusal"}


class Problem(Exception):
    """The request is answered with this error; `wait` is the seconds until a retry."""

    def __init__(self, fault: ErrorFault, message: str | None = None, *, wait: float | None = None) -> None:
        super().__init__(message or fault)
        self.fault: ErrorFault = fault
        self.message, self.wait = message, wait

    def reply(self, wire: Wire, *, key: str, model: str, request_id: str) -> tuple[int, dict[str, Any]]:
        """Status and body."""
        status, kind, code, message = ERRORS[self.fault][wire]
        message = self.message or message.replace("{key}", key).replace("{model}", model)
        if wire == "openai":
            return status, {"error": {"message": message, "type": kind, "param": None, "code": code}}
        details = {"details": {"error_code": code}} if code else {}
        error = {"type": kind, "message": message, **details}
        return status, {"type": "error", "error": error, "request_id": request_id}


@dataclass(frozen=True)
class ModelRequest:
    """A request of either protocol."""

    wire: Wire
    model: str
    # The last message.
    prompt: str
    # All messages and the system prompt.
    text: str
    schema: dict[str, Any] | None
    max_tokens: int | None
    # Bytes of the text and of the schema // 4 + PROMPT_OVERHEAD.
    input_tokens: int


@dataclass(frozen=True)
class Answer:
    text: str
    stop: Literal["end", "length", "refusal", "content_filter"]
    # All tokens of the prompt, cached or not.
    input_tokens: int
    cached_tokens: int
    cache_write_tokens: int
    # Bytes of the text // 4, at least 1, plus the reasoning; never above max_tokens.
    output_tokens: int
    reasoning_tokens: int
    category: str | None = None

    def dollars(self, behavior: Behavior, *, batch: bool) -> float:
        plain = self.input_tokens - self.cached_tokens - self.cache_write_tokens
        million = (
            plain * behavior.price_input
            + self.cached_tokens * behavior.price_cache_read
            + self.cache_write_tokens * behavior.price_cache_write
            + self.output_tokens * behavior.price_output
        )
        return million / 1e6 * (0.5 if batch else 1.0)


def parsed(raw: bytes) -> dict[str, Any]:
    try:
        body = json.loads(raw)
    except ValueError:
        raise Problem("invalid_request", "We could not parse the JSON body of your request.") from None
    if not isinstance(body, dict):
        raise Problem("invalid_request", "The body must be a JSON object.")
    return body


def last_message(body: Mapping[str, Any]) -> str:
    """The text of the last message, empty if there is none."""
    messages = body.get("messages")
    if isinstance(messages, list) and messages and isinstance(messages[-1], dict):
        return _text(messages[-1].get("content"))
    return ""


def read_request(wire: Wire, body: Mapping[str, Any], *, strict: bool) -> ModelRequest:
    """Raises Problem where something is missing, or the provider refuses the schema."""
    for name in ("model", "messages", *(("max_tokens",) if wire == "anthropic" else ())):
        if not body.get(name):
            missing = f"Missing required parameter: '{name}'." if wire == "openai" else f"{name}: Field required"
            raise Problem("invalid_request", missing)
    if body.get("stream"):
        raise Problem("invalid_request", "Streaming is not offered here.")
    schema, is_strict = _openai_schema(body) if wire == "openai" else _anthropic_schema(body)
    written = json.dumps(schema, ensure_ascii=False, separators=(",", ":")) if schema is not None else ""
    if written and strict and is_strict and (problem := _schema_problem(wire, written)):
        raise Problem("invalid_request", problem)
    texts = [_text(body.get("system")), *(_text(message.get("content")) for message in body["messages"])]
    text = "\n".join(filter(None, texts))
    limit = body.get("max_completion_tokens") or body.get("max_tokens")
    tokens = len((text + written).encode()) // 4 + PROMPT_OVERHEAD
    return ModelRequest(wire, str(body["model"]), last_message(body), text, schema, limit, tokens)


def _text(content: Any) -> str:
    if isinstance(content, list):
        return "".join(part.get("text") or "" for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def _openai_schema(body: Mapping[str, Any]) -> tuple[dict[str, Any] | None, bool]:
    """The schema, and whether it must be strict."""
    response_format = body.get("response_format") or {}
    if response_format.get("type") == "json_schema":
        inner = response_format.get("json_schema") or {}
        if not inner.get("name"):
            raise Problem("invalid_request", "Missing required parameter: 'response_format.json_schema.name'.")
        return inner.get("schema") or {"type": "object"}, bool(inner.get("strict"))
    if response_format.get("type") == "json_object":
        return {"type": "object", "properties": {"text": {"type": "string"}}}, False
    return None, False


def _anthropic_schema(body: Mapping[str, Any]) -> tuple[dict[str, Any] | None, bool]:
    output_format = (body.get("output_config") or {}).get("format") or {}
    return (output_format.get("schema"), True) if output_format.get("type") == "json_schema" else (None, True)


@lru_cache(maxsize=256)
def _schema_problem(wire: Wire, written: str) -> str | None:
    """The reason why structured outputs refuse this schema."""
    prefix = "Invalid schema for response_format: " if wire == "openai" else "output_config.format.schema: "
    problem = _node_problem(wire, json.loads(written))
    return prefix + problem if problem else None


def _node_problem(wire: Wire, node: Any) -> str | None:
    if isinstance(node, list):
        children = node
    elif isinstance(node, dict):
        if problem := _own_problem(wire, node):
            return problem
        children = [child for name, child in node.items() if name not in ("properties", "$defs", "enum", "const")]
        children += [*(node.get("properties") or {}).values(), *node.get("$defs", {}).values()]
    else:
        return None
    return next((below for child in children if (below := _node_problem(wire, child))), None)


def _own_problem(wire: Wire, node: dict[str, Any]) -> str | None:
    """The problem of a schema itself, not of its children."""
    properties = node.get("properties")
    if node.get("type") == "object" and node.get("additionalProperties") is not False:
        return "For 'object' type, 'additionalProperties' must be explicitly set to false"
    if wire == "openai" and isinstance(properties, dict) and set(properties) != set(node.get("required", [])):
        return "'required' is required to be supplied and to be an array including every key in properties."
    if wire == "anthropic" and (keywords := sorted(UNSUPPORTED.intersection(node))):
        return f"For '{node.get('type')}' type, property '{keywords[0]}' is not supported"
    if wire == "anthropic" and node.get("minItems", 0) not in (0, 1):
        return "For 'array' type, 'minItems' values other than 0 or 1 are not supported"
    return None


def success_body(answer: Answer, request: ModelRequest, number: str, *, batch: bool) -> dict[str, Any]:
    if request.wire == "openai":
        return _completion(answer, request, number)
    return _message(answer, request, number, "batch" if batch else "standard")


def _completion(answer: Answer, request: ModelRequest, number: str) -> dict[str, Any]:
    refused = answer.stop == "refusal"
    message = {
        "role": "assistant",
        "content": None if refused else answer.text,
        "refusal": answer.text if refused else None,
        "annotations": [],
    }
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": OPENAI_FINISH[answer.stop]}
    usage = {
        "prompt_tokens": answer.input_tokens,
        "completion_tokens": answer.output_tokens,
        "total_tokens": answer.input_tokens + answer.output_tokens,
        "prompt_tokens_details": {
            "cached_tokens": answer.cached_tokens,
            "cache_write_tokens": answer.cache_write_tokens,
            "audio_tokens": 0,
        },
        "completion_tokens_details": {
            "reasoning_tokens": answer.reasoning_tokens,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }
    return {
        "id": f"chatcmpl-{number}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": request.model,
        "choices": [choice],
        "usage": usage,
        "service_tier": "default",
        "system_fingerprint": None,
    }


def _message(answer: Answer, request: ModelRequest, number: str, tier: str) -> dict[str, Any]:
    refused = answer.stop in ("refusal", "content_filter")
    details = None
    if refused:
        explanation = "This request was declined by a safety classifier."
        details = {"type": "refusal", "category": answer.category, "explanation": explanation}
    usage = {
        "input_tokens": answer.input_tokens - answer.cached_tokens - answer.cache_write_tokens,
        "cache_creation_input_tokens": answer.cache_write_tokens,
        "cache_read_input_tokens": answer.cached_tokens,
        "cache_creation": {
            "ephemeral_5m_input_tokens": answer.cache_write_tokens,
            "ephemeral_1h_input_tokens": 0,
        },
        "output_tokens": answer.output_tokens,
        "output_tokens_details": {"thinking_tokens": answer.reasoning_tokens},
        "server_tool_use": None,
        "service_tier": tier,
    }
    return {
        "id": f"msg_{number}",
        "type": "message",
        "role": "assistant",
        "model": request.model,
        "content": [{"type": "text", "text": answer.text}] if answer.text and not refused else [],
        "stop_reason": ANTHROPIC_STOP[answer.stop],
        "stop_sequence": None,
        "stop_details": details,
        "usage": usage,
    }
