"""Arguments that several commands share. Every error names the value and what was expected."""

from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Callable
from typing import Any

from pipelines.cli import completion

# Integers of the warehouse have 64 bits.
LIMIT_64_BITS = 2**63
FORMATS = ("text", "markdown", "json", "csv")


def whole(least: int | None = None) -> Callable[[str], int]:
    """Return a reader of whole numbers that are at least `least`."""
    expected = "a whole number of at most 64 bits" if least is None else f"a whole number of {least} or more"

    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = None
        if number is None or not (-LIMIT_64_BITS if least is None else least) <= number < LIMIT_64_BITS:
            raise ArgumentTypeError(f"got {text!r}; expected {expected}")
        return number

    return read


def not_negative(text: str) -> float:
    return _number(text, "a number from 0 on")


def dollars(text: str) -> float:
    return _number(text, "dollars from 0 on, such as 0.50")


def rate(text: str) -> float:
    return _number(text, "a learning rate, such as 2e-4")


def _number(text: str, expected: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    # The comparison rejects NaN too.
    if not 0 <= number < float("inf"):
        raise ArgumentTypeError(f"got {text!r}; expected {expected}")
    return number


def whole_numbers(least: int, expected: str) -> Callable[[str], list[int]]:
    """Return a reader of lists such as `2,8,32`."""

    def read(text: str) -> list[int]:
        try:
            return [whole(least)(number) for number in text.split(",")]
        except ArgumentTypeError:
            raise ArgumentTypeError(f"got {text!r}; expected {expected}") from None

    return read


def model_and_method(text: str) -> tuple[str, str]:
    """Read `smollm2-135m/lora-r8`."""
    model, _, method = text.partition("/")
    if not model or not method:
        raise ArgumentTypeError(f"got {text!r}; expected MODEL/METHOD")
    return model, method


def one_of(*allowed: str) -> Callable[[str], str]:
    """Return a reader of one of these names.

    Unlike argparse's `choices`, it suggests the closest name.
    """

    def read(text: str) -> str:
        from pipelines.records.expected import expected_one_of

        if text not in allowed:
            raise ArgumentTypeError(f"got {text!r}; {expected_one_of(text, list(allowed))}")
        return text

    return read


def some_of(*allowed: str) -> Callable[[str], list[str]]:
    """Return a reader of comma-separated names out of `allowed`."""
    read_one = one_of(*allowed)
    return lambda text: [read_one(part.strip()) for part in text.split(",")]


def add_choice(parser: ArgumentParser, option: str, *allowed: str, about: str, **more: Any) -> None:
    """Add an option that takes one of `allowed`."""
    shown = more.pop("metavar", "{" + ",".join(allowed) + "}")
    added = parser.add_argument(option, type=one_of(*allowed), metavar=shown, help=about, **more)
    completion.offer(added, lambda: allowed)


def add_format(parser: ArgumentParser) -> None:
    add_choice(parser, "--format", *FORMATS, about="default: text", default="text")


def add_model(parser: ArgumentParser, about: str = "a name under models: of experiments.yaml", **more: Any) -> None:
    completion.offer(parser.add_argument("model", metavar="MODEL", help=about, **more), completion.models)


def add_method(parser: ArgumentParser, about: str = "a name under methods:, such as lora-r8", **more: Any) -> None:
    completion.offer(parser.add_argument("method", metavar="METHOD", help=about, **more), completion.methods)


def add_cell(parser: ArgumentParser) -> None:
    add_model(parser)
    add_method(parser)


def add_seeds(parser: ArgumentParser) -> None:
    about = "only this seed (repeat for more); default: the profile's seeds"
    parser.add_argument("--seed", type=whole(), action="append", metavar="N", help=about)


def add_force(parser: ArgumentParser, about: str) -> None:
    parser.add_argument("--force", action="store_true", help=about)


def add_profile(parser: ArgumentParser) -> None:
    about = "the profile whose settings apply, a name under profiles:; default: this machine's"
    completion.offer(parser.add_argument("--profile", metavar="NAME", help=about), completion.profiles)
