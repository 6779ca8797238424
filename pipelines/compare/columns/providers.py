"""The tables that compare providers: the outcomes of the same requests, and whose records the
judge prefers."""

from pipelines.compare.columns.calls import LLM_CALLS
from pipelines.compare.columns.quality import SHARE
from pipelines.lake.schema import Better, Column, Table, count, flag, group, real, text

# The outcomes of a request: the meaning of the count, and which direction is better.
OUTCOMES: dict[str, tuple[str, Better]] = {
    "answered": ("Number of requests that got an answer.", "higher"),
    "valid": ("Number of answers that fit the schema asked for.", "higher"),
    "refused": ("Number of answers that the model refused to give.", "lower"),
    "truncated": ("Number of answers that reached the limit of tokens.", "lower"),
    "duplicate": ("Number of answers that cleaning dropped as duplicates; NULL before all were cleaned.", "lower"),
    "accepted": ("Number of answers that cleaning accepted; NULL before all were cleaned.", "higher"),
}
PROVIDER = LLM_CALLS.pick("provider")


def _shares(name: str, better: Better) -> tuple[Column, ...]:
    share = f"{name}_share"
    return (
        real(share, f"Share of the requests: {name} / requested.", SHARE, 2, better=better, heading=name),
        real(f"{share}_low", f"Lower end of the 95 % interval of {share}.", SHARE, 2, heading="from"),
        real(f"{share}_high", f"Upper end of the 95 % interval of {share}.", SHARE, 2, heading="to"),
    )


PROVIDER_COMPARISON = Table(
    "provider_comparison",
    "One row for each provider, over the topic cells that all providers were asked for, or its own where there are none.",
    (
        *PROVIDER,
        *group("provider", "configuration",
            text("model", "Model that the provider runs."),
            text("kind", "Kind of API, as experiments.yaml names it."),
            flag("trained_on", "Whether the provider's records are among the sources of training."),
        ),
        *group("requests", "journal",
            count("cells", "Number of topic cells compared."),
            count("requested", "Number of requests that were sent and have come to an end.", heading="asked"),
        ),
        *group("outcomes", "comparison",
            *(count(name, meaning, better=better) for name, (meaning, better) in OUTCOMES.items()),
            *(column for name, (_, better) in OUTCOMES.items() for column in _shares(name, better)),
        ),
        *group("requests", "journal",
            count("failed", "Number of requests that got no answer.", better="lower"),
            count("in_doubt", "Number of requests whose outcome was lost at least once.", better="lower"),
            count("attempts", "How often requests were sent, over all of them.", better="lower"),
        ),
        *group("tokens", "journal",
            count("input_tokens", "Tokens of all prompts, as billed."),
            count("cached_input_tokens", "Tokens of the prompts that the provider read from its cache."),
            count("output_tokens", "Tokens of all answers, reasoning included, as billed."),
            count("reasoning_tokens", "Tokens of the answers that were spent on reasoning."),
        ),
        *group("money", "journal",
            real("cost_usd", "Price of all answers; NULL where one is not known.", "USD", 4, better="lower"),
            real("reserved_usd", "Highest possible price of requests whose real price is not known; it counts as spent.", "USD", 4,
                 better="lower"),
        ),
        *group("money", "comparison",
            real("usd_per_accepted", "Price of an accepted record: (cost_usd + reserved_usd) / accepted.", "USD", 4,
                 better="lower", heading="$ per accepted")),
        *group("speed", "journal",
            real("p50_latency_ms", "Median time of an answer.", "ms", 0, better="lower", heading="p50 ms"),
            real("p95_latency_ms", "95th percentile of the time of an answer; NULL under 20 answers.", "ms", 0, better="lower",
                 heading="p95 ms"),
        ),
        *group("variety", "comparison",
            real("distinct_1", "Distinct words of the valid outputs, as a share of all their words.", SHARE, 2, better="higher"),
            real("distinct_2", "Distinct pairs of neighbouring words, as a share of all such pairs.", SHARE, 2, better="higher"),
        ),
        *group("judge", "judge",
            real("win_rate", "Mean share of pairs that the provider wins against each other provider, a tie as half.", SHARE, 2,
                 better="higher")),
        *group("provider", "comparison", text("note", "What limits the comparison, such as answers not cleaned yet.")),
    ),
)  # fmt: skip
PROVIDER_DUELS = Table(
    "provider_duels",
    "One row for each pair of providers and judge: whose records for the same topic cells are better.",
    (
        *PROVIDER,
        *group("pair", "configuration",
            text("against", "Name of the other provider."),
            text("judge", "Name of the provider that judged."),
            flag("judge_shares_family", "Whether the judge is of the same model family as one of the two."),
        ),
        *group("verdicts", "judge",
            count("cells", "Number of topic cells judged in both orders."),
            count("wins", "Number of cells where the provider's record is better in both orders.", better="higher"),
            count("losses", "Number of cells where the other's record is better in both orders.", better="lower"),
            count("ties", "Number of cells that are ties, or whose verdict changed with the order."),
            count("order_disagreements", "Number of cells whose verdict changed with the order.", better="lower"),
            count("unreadable", "Number of cells without a readable verdict.", better="lower"),
        ),
        *group("verdicts", "comparison",
            real("win_rate", "Share of the cells won, a tie as half.", SHARE, 2, better="higher"),
            real("win_rate_low", "Lower end of the 95 % interval of win_rate.", SHARE, 2, heading="from"),
            real("win_rate_high", "Upper end of the 95 % interval of win_rate.", SHARE, 2, heading="to"),
            real("smallest_difference", "Smallest difference in win rate that this sample shows with 80 % power.", SHARE, 2,
                 better="lower"),
            text("verdict", "Which provider is better, or that the cells are too few or show no clear winner."),
        ),
    ),
)  # fmt: skip
