"""`learning_rate: auto` as a list of rates to search, by what trains. The list stands in the recipe, so a change here makes rows
stale."""

from pipelines.settings.methods import DEFAULT_RATES, Traits

STEP = 10**0.5  # between neighbors: two steps are a factor of ten
WIDE_STEP = 10.0
# Two below the default and four above: the few steps of a small data set want more than the defaults, which come of long runs. On
# SmolLM2's 8 steps of profile `local` 1e-4 was best for full and 1e-3 for LoRA, five times the defaults.
PLACES = range(-2, 5)
WIDE_PLACES = range(-2, 3)
# Rates of PEFT's own comparison where it departs from its default (huggingface/peft, method_comparison/MetaMathQA/experiments,
# names of folders and training_params.json).
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
UNKNOWN = 2e-3  # the middle of what is tried for an adapter that nobody names a rate for


def default_of(traits: Traits, fallback: float | None = None) -> float:
    """The rate to train with where none can be searched for: that of PEFT's comparison, else the one `named` for the kind."""
    return KNOWN_RATES.get(traits.peft_type or "", fallback or DEFAULT_RATES[traits.rate])


def grid_of(traits: Traits) -> list[float]:
    """The rates that `auto` stands for, smallest first.

    Seven, each 10^(1/2) times the one before, from a tenth of the rate that is known for the kind to a hundred times it. For an
    adapter without one five, each ten times the one before, from 2e-5 to 0.2.
    """
    if traits.has_adapter and traits.peft_type not in (*LIKE_LORA, *KNOWN_RATES):
        return [_rounded(UNKNOWN * WIDE_STEP**place) for place in WIDE_PLACES]
    return [_rounded(default_of(traits) * STEP**place) for place in PLACES]


def beyond(rates: list[float], *, above: bool) -> float:
    """The next rate of a geometric list past its largest or, without `above`, its smallest."""
    step = rates[-1] / rates[-2]
    return _rounded(rates[-1] * step if above else rates[0] / step)


def _rounded(rate: float) -> float:
    """To two digits, as people write rates."""
    return float(f"{rate:.1e}")
