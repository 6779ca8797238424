"""The tables of what is trained and evaluated on: examples, rejects, and their summary."""

from pipelines.lake.schema import Table, count, group, real, text

PLACE = group(
    "origin", "cleaning",
    text("source", "Source of the record: corpus, providers, or the name of a file or data set."),
    text("provider", "Provider whose model wrote the record; NULL for records that no provider of ours wrote."),
    text("model", "Model that wrote the record, as its provider names it."),
    text("topic", "Topic of the record, where its source names one."),
)  # fmt: skip
LANGUAGE = group(
    "content",
    "cleaning",
    text("language", "Language that the record declares, else the one detected, such as en or ko."),
)
RECORD_ID = group(
    "origin", "cleaning", text("record_id", "Hash of the raw record, numbered where equal records came twice.")
)
CALL_KEY = group("origin", "cleaning", text("call_key", "Key in llm_calls of the request that the record came from."))
_SOURCE, _PROVIDER, _MODEL, _TOPIC = PLACE
SFT_EXAMPLES = Table(
    "sft_examples",
    "One row for each record that cleaning accepted, for training or for evaluation.",
    (
        *group("content", "cleaning",
            text("example_id", "Hash of the example's normalized text."),
            text("instruction", "What is asked; of a conversation, its first question."),
            text("input", "Text that the instruction is about; may be empty."),
            text("output", "Answer to learn; of a conversation, its last answer."),
            text("messages", "All turns of a conversation, as JSON; NULL for a single question and answer."),
        ),
        *LANGUAGE, *PLACE,
        *group("content", "cleaning", text("split", "What the example is for: train or eval.")),
        *RECORD_ID, *CALL_KEY,
        *group("content", "cleaning", text("tools", "Tools that the conversation may call, as JSON.")),
    ),
)  # fmt: skip
SFT_REJECTS = Table(
    "sft_rejects",
    "One row for each record that cleaning dropped, with the reason and the whole record.",
    (
        *RECORD_ID, *PLACE, *LANGUAGE, *CALL_KEY,
        *group("reject", "cleaning",
            text("reason", "Code of the first rule that the record broke."),
            text("detail", "What was found in the record, in one sentence.", heading="why"),
            text("twin", "record_id of the record that was kept instead of this one, where it is a duplicate."),
            real("similarity", "Jaccard similarity of the two records' shingles.", "share, 0 to 1", 3),
            text("record", "The record as it came, as JSON."),
        ),
    ),
)  # fmt: skip
CLEANING_SUMMARY = Table(
    "cleaning_summary",
    "One row for each source, provider and outcome of cleaning.",
    (
        _SOURCE, _PROVIDER,
        *group("count", "cleaning",
            text("reason", "What became of the records: accepted, or the code of the first rule that they broke."),
            count("records", "Number of records."),
            real("share", "Share of the records of this source and provider.", "share, 0 to 1", 3),
        ),
    ),
)  # fmt: skip
