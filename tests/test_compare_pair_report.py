"""The report's section on win rates: shown where some were measured, with their limits, and without
foreign markup."""

from typing import Any

from pipelines.compare.beyond import PARTS
from pipelines.compare.pair_report import long_form, section
from tests.fakes.planted import row

RATE = {"win_rate_vs_base": 0.75, "win_rate_vs_base_low": 0.6, "win_rate_vs_base_high": 0.88}
JUDGED: dict[str, Any] = {**RATE, "pair_wins": 20, "pair_ties": 20, "pair_losses": 0, "pair_agreement": 0.5,
                          "pair_judge": "<img src=x onerror=alert(1)>"}  # fmt: skip
VOTED = {"preference_win_rate": 0.5, "preference_votes": 1}


def test_nothing_is_shown_where_nothing_was_asked() -> None:
    assert section in PARTS
    assert section([row(), row(method="base")], {}) is None and section([]) is None


def test_win_rates_stand_beside_what_limits_them() -> None:
    why = "the untouched model's row is stale (recipe changed)"
    rows = [row(method="base"), row(method="full", **JUDGED), row(method="lora-r8", **{**JUDGED, "pair_agreement": 0.9}),
            row(method="lora-r64", pair_note=why, **VOTED), row(method="qlora-r8", pair_note=why)]  # fmt: skip
    assert [(one["by"], one["method"], one["rate"], one["low"]) for one in long_form(rows)] == [
        ("the judge's verdicts", "full", 0.75, 0.6),
        ("the judge's verdicts", "lora-r8", 0.75, 0.6),
        ("people's votes", "lora-r64", 0.5, None),
    ]
    page = str(section(rows))
    assert "in both orders of only 50 % (tiny × full) of the pairs" in page
    assert page.count("row is stale (recipe changed)") == 1 and "tiny × lora-r64, tiny × qlora-r8: " in page
    assert "Only" not in page, "40 pairs are enough"
    assert "<img src=x" not in page and "&lt;img src=x" in page
    assert page.count("<svg") == 1 and "votes won" in page and "75 % (60 to 88)" in page and ">50 %<" in page
    assert "Only 9 pairs" in str(section([row(**{**JUDGED, "pair_wins": 5, "pair_ties": 4})]))
