"""Every reason why a record is dropped: its meaning, and what to do if the record should have been
kept."""

from typing import NamedTuple


class Reason(NamedTuple):
    """What a reason means, and how to keep such records."""

    because: str
    remedy: str


# In the order in which they are tried: the first that applies is the reason.
REASONS: dict[str, Reason] = {
    "schema": Reason(
        "no question and answer in a known shape",
        "expected instruction, input, output; prompt and completion; question and answer; messages, conversations, "
        "or a preference pair. Other names: columns: {instruction: …, output: …} in sources, or "
        "--columns instruction=…,output=…",
    ),
    "not_text": Reason("it needs a picture, sound or video", "a text model cannot see it; bring records of text"),
    "tool_calls": Reason(
        "an assistant calls a tool, or a tool's result is a turn",
        "cleaning: {tool_calls: keep} keeps tools, calls and results",
    ),
    "labelled_undesirable": Reason("the record labels its own answer as bad", "only answers labelled true are learned"),
    "reasoning": Reason("its answer holds reasoning", "cleaning: {reasoning: strip} removes it, keep keeps it"),
    "encoding": Reason(
        "text decoded wrongly, or bytes that are no text", "name the encoding: --encoding cp949, or {path: …, encoding: cp949}"
    ),
    "empty": Reason("the question or the answer is blank", "fill it in, or leave the record out"),
    "too_short": Reason("shorter than configured", "cleaning: min_prompt_chars, min_output_chars"),
    "too_long": Reason("longer than configured", "cleaning: max_chars"),
    "repetition": Reason("the answer is stuck in a loop", "cleaning: max_repeated_share"),
    "placeholder": Reason(
        "the answer leaves a placeholder that the question does not ask for", "fill it in, or cleaning: max_placeholders"
    ),
    "refusal": Reason("the answer refuses", "cleaning: {refusal_chars: 0} keeps refusals"),
    "prompt_echo": Reason("the answer is the question again", "cleaning: max_echo_share"),
    "personal_data": Reason("it holds personal data or a secret", "cleaning: {on_personal_data: redact} replaces it"),
    "wrong_language": Reason("another language than declared or configured", "cleaning: {languages: […]}, or null for any"),
    "exact_duplicate": Reason("equal to a better record except for case and white space", "one of them is kept"),
    "contamination": Reason(
        "a train record too close to an eval record", "the eval record stays; cleaning: near_duplicate_jaccard"
    ),
    "near_duplicate": Reason("nearly equal to a better record", "the better one stays; cleaning: near_duplicate_jaccard"),
}  # fmt: skip
