"""The night: when it begins, and what it may do."""

import re
from typing import Annotated, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, Field, PositiveFloat

from pipelines.settings.strict import Strict

CRON = (("minute", 0, 59), ("hour", 0, 23), ("day", 1, 31), ("month", 1, 12), ("weekday", 0, 7))
MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
CRON_NUMBER = re.compile(r"[0-9]{1,2}")
NAMES = {
    "month": {name: i for i, name in enumerate(MONTHS, 1)},
    "weekday": {name: i for i, name in enumerate(WEEKDAYS)},
}
# The most days that each month can have.
DAYS = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)


def _is_cron(text: str) -> str:
    """Check the five fields of crontab(5): numbers, names, lists, ranges, steps."""
    parts = text.lower().split()
    if len(parts) != len(CRON):
        raise ValueError(f"got {text!r}; expected minute, hour, day, month and weekday, such as 0 2 * * *")
    chosen: dict[str, set[int]] = {}
    for part, (field, low, high) in zip(parts, CRON, strict=True):
        chosen[field] = set()
        for item in part.split(","):
            values = _cron_item(item, field, low, high)
            if not values:
                raise ValueError(f"got {text!r}; its {field} {item!r} is none from {low} to {high}")
            chosen[field].update(values)
    if all(day > DAYS[month - 1] for day in chosen["day"] for month in chosen["month"]):
        raise ValueError(f"got {text!r}; its day {parts[2]} never comes in month {parts[3]}; expected a day that does")
    return text


def _cron_item(item: str, field: str, low: int, high: int) -> range:
    """The values of one item of a field; an empty range if the item is invalid."""
    span, slash, step = item.partition("/")
    names = NAMES.get(field, {})
    ends = [str(names.get(end, end)) for end in span.split("-")] if span != "*" else [str(low), str(high)]
    numbers = [int(end) if CRON_NUMBER.fullmatch(end) else -1 for end in ends]
    good_step = not slash or (CRON_NUMBER.fullmatch(step) and 0 < int(step) <= high)
    if len(numbers) > 2 or not low <= numbers[0] <= numbers[-1] <= high or not good_step:
        return range(0)
    last = high if slash and len(numbers) == 1 else numbers[-1]
    return range(numbers[0], last + 1, int(step) if slash else 1)


def _is_timezone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (ValueError, OSError, ZoneInfoNotFoundError):
        raise ValueError(f"got {name!r}; expected a name of the time zone database, such as Europe/Berlin") from None
    return name


Fingerprint = Literal["data", "recipe", "code", "machine", "evaluation"]


class Nightly(Strict):
    """When the night begins and what it may do."""

    cron: Annotated[str, AfterValidator(_is_cron)] = "0 2 * * *"
    """When the night begins, as the five fields of crontab(5)."""
    timezone: Annotated[str, AfterValidator(_is_timezone)] = "UTC"
    """Time zone of `cron`, by its name in the time zone database."""
    profile: str = "auto"
    """Profile whose cells the night runs; `auto`: this machine's."""
    budget_usd: Annotated[float, Field(ge=0)] | None = None
    """Dollars of one night for API calls, and for training at the profile's `price_per_hour`.
    Unset: no limit."""
    max_hours: PositiveFloat | None = None
    """Hours after which no further cell starts. Unset: no limit."""
    rerun_for: list[Fingerprint] = ["data", "recipe", "machine", "evaluation"]
    """Changes that make a good row due again, for `make run`, `plan` and the night."""
    retime_after_days: Annotated[float, Field(gt=0, le=3650)] | None = 7
    """Age of the last attempt after which a row with a disturbed speed is measured again; null:
    never."""
    alarm_after_hours: Annotated[float, Field(gt=0, le=87600)] = 36
    """Age of a publication from which the comparison counts as outdated."""
