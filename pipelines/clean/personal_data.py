"""Personal data and secrets in a text: candidates by pattern in SQL, then each checked by what such a number must satisfy."""

import re
from collections.abc import Callable, Sequence

import pyarrow as pa

from pipelines.clean.rules import TEXT, quoted
from pipelines.clean.work import Work
from pipelines.experiments import Cleaning

Check = Callable[[str], bool]

RESIDENT_NUMBER = r"\b[0-9]{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12][0-9]|3[01])[- ]?[1-8][0-9]{6}\b"
CARD = r"\b[3-6][0-9]{3}(?:[- ]?[0-9]){9,15}\b"
PHONE = (
    r"(?:\+82[- ]?|\b0)1[016789][- .]?[0-9]{3,4}[- .]?[0-9]{4}\b"  # Korean mobile
    r"|\b0(?:2|[3-6][1-5]|70)[-)][0-9]{3,4}-[0-9]{4}\b"  # Korean landline, with its signs
    r"|(?:\+1[- .]?)?(?:\([2-9][0-9]{2}\) ?|\b[2-9][0-9]{2}[-.])[2-9][0-9]{2}[-.][0-9]{4}\b"  # North American
    r"|\+[1-9][0-9]{0,2}[- .][0-9]{1,4}(?:[- .][0-9]{2,4}){2,4}\b"  # international, with its signs
)
EMAIL = r"\b[A-Za-z0-9._%+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}\b"
API_KEY = (
    r"\bsk-(?:ant-|proj-)?[A-Za-z0-9_-]{20,}|\bAKIA[0-9A-Z]{16}\b|\bgh[pousr]_[A-Za-z0-9]{36}\b|\bgithub_pat_\w{22,}"
    r"|\bAIza[A-Za-z0-9_-]{35}|\bhf_[A-Za-z0-9]{30,}\b|\bxox[abprs]-[A-Za-z0-9-]{10,}|-----BEGIN (?:[A-Z]+ )?PRIVATE KEY-----"
)
# names that are set aside for examples (RFC 2606) belong to nobody
NOBODY = re.compile(r"[@.](?:example\.(?:com|net|org)|example|test|invalid|localhost)$", re.IGNORECASE)


def is_resident_number(text: str) -> bool:
    """Whether the last digit of a Korean resident registration number is the check digit of the others."""
    digits = _digits(text)
    weights = (2, 3, 4, 5, 6, 7, 8, 9, 2, 3, 4, 5)
    total = sum(weight * digit for weight, digit in zip(weights, digits, strict=False))
    return len(digits) == 13 and (11 - total % 11) % 10 == digits[-1]


def is_card(text: str) -> bool:
    """Whether a number of 13 to 19 digits has the check digit that cards have (Luhn, ISO/IEC 7812-1)."""
    digits = _digits(text)
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[-2::-2]]
    return 13 <= len(digits) <= 19 and (sum(digits[::-2]) + sum(doubled)) % 10 == 0


def is_email(text: str) -> bool:
    return not NOBODY.search(text)


def _digits(text: str) -> list[int]:
    return [int(sign) for sign in text if sign.isdigit()]


def _always(_: str) -> bool:
    return True


KINDS: dict[str, tuple[str, Check]] = {
    "resident_number": (RESIDENT_NUMBER, is_resident_number),
    "card": (CARD, is_card),
    "phone": (PHONE, _always),
    "email": (EMAIL, is_email),
    "api_key": (API_KEY, _always),
}


def found_in(text: str, kinds: Sequence[str]) -> list[str]:
    """The kinds of personal data in `text`, in the order asked for."""
    # ASCII, as in SQL: a Korean particle right behind a number is no part of it
    found = {kind: re.finditer(KINDS[kind][0], text, re.ASCII) for kind in kinds}
    return [kind for kind, matches in found.items() if any(KINDS[kind][1](match[0]) for match in matches)]


def reject_personal_data(work: Work, settings: Cleaning) -> None:
    """Add a verdict for each record that holds personal data of a configured kind. The detail names kinds, not numbers."""
    if not settings.personal_data:
        return
    pattern = quoted("|".join(KINDS[kind][0] for kind in settings.personal_data))
    candidates = work.db.sql(f"""
        SELECT n, {TEXT} AS told FROM staged ANTI JOIN verdicts USING (n) WHERE regexp_matches({TEXT}, {pattern})
    """).to_arrow_reader(1000)
    found = [
        {"n": row["n"], "detail": "holds " + ", ".join(kinds)}
        for batch in candidates
        for row in batch.to_pylist()
        if (kinds := found_in(row["told"], settings.personal_data))
    ]
    if found:
        work.db.register("found", pa.Table.from_pylist(found))
        work.db.execute("INSERT INTO verdicts (n, reason, detail) SELECT n, 'personal_data', detail FROM found")
        work.db.unregister("found")
