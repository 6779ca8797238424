"""`learning_rate: auto` as a list of rates to search, by the method's traits.

The list is part of the recipe, so a change here makes rows stale.
"""

from pipelines.settings.methods import DEFAULT_RATES, Traits

# Ratio of neighboring rates: two steps are a factor of ten.
STEP = 10**0.5
WIDE_STEP = 10.0
# Two rates below the default and four above. The defaults come from long runs; the few steps of a
# small data set need higher rates. In SmolLM2's 8 steps of profile `local` the best rates were 1e-4
# for full and 1e-3 for LoRA, five times the defaults.
PLACES = range(-2, 5)
WIDE_PLACES = range(-2, 3)
# Rates of PEFT's own comparison that differ from its default (huggingface/peft,
# method_comparison/MetaMathQA/experiments, names of folders and training_params.json).
KNOWN_RATES = {
    "ADAPTION_PROMPT": 5e-3,
    "C3A": 3e-1,
    "HIRA": 4.5e-3,
    "IA3": 5e-3,
    "LOKR": 3e-3,
    "PREFIX_TUNING": 5e-3,
    "PROMPT_TUNING": 1e-3,
    "SHIRA": 3e-4,
}
LIKE_LORA = ("LORA", "ADALORA")
# The middle of the grid for an adapter without a known rate.
UNKNOWN = 2e-3


def default_of(traits: Traits, fallback: float | None = None) -> float:
    """The rate for a cell without a search: that of PEFT's comparison, else `fallback`, else the
    kind's default."""
    return KNOWN_RATES.get(traits.peft_type or "", fallback or DEFAULT_RATES[traits.rate])


def grid_of(traits: Traits) -> list[float]:
    """The rates that `auto` stands for, smallest first.

    Seven rates, each 10^(1/2) times the one before, from a tenth of the kind's known rate to a
    hundred times it. An adapter without a known rate gets five, each ten times the one before, from
    2e-5 to 0.2.
    """
    if traits.has_adapter and traits.peft_type not in (*LIKE_LORA, *KNOWN_RATES):
        return [_rounded(UNKNOWN * WIDE_STEP**place) for place in WIDE_PLACES]
    return [_rounded(default_of(traits) * STEP**place) for place in PLACES]


def beyond(rates: list[float], *, above: bool) -> float:
    """The next rate of a geometric list: past its largest, or without `above` past its smallest."""
    step = rates[-1] / rates[-2]
    return _rounded(rates[-1] * step if above else rates[0] / step)


def _rounded(rate: float) -> float:
    """Rounded to two digits, as people write rates."""
    return float(f"{rate:.1e}")
