"""Personal data and secrets in a text: candidates by pattern in SQL, then checked one by one in
Python.

A number must satisfy its checksum or format and must belong to somebody. Example addresses of
documentation, patterns, and data that the question calls made up belong to nobody.
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipelines.clean.rules import TEXT, quoted
from pipelines.clean.stage import COLUMNS, restaged
from pipelines.clean.work import Work
from pipelines.settings.cleaning import Cleaning

Check = Callable[[str], bool]

RESIDENT_NUMBER = r"\b[0-9]{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12][0-9]|3[01])[- ]?[1-8][0-9]{6}\b"
# Of the United States.
SOCIAL_SECURITY_NUMBER = r"\b[0-8][0-9]{2}-[0-9]{2}-[0-9]{4}\b"
CARD = r"\b[3-69][0-9]{3}(?:[- ]?[0-9]){9,15}\b"
PHONE = (
    # Korean mobile.
    r"(?:\+82[- ]?|\b0)1[016789][- .]?[0-9]{3,4}[- .]?[0-9]{4}\b"
    # Korean landline, with separators.
    r"|\b0(?:2|[3-6][1-5]|70)[-)][0-9]{3,4}-[0-9]{4}\b"
    # North American.
    r"|(?:\+1[- .]?)?(?:\([2-9][0-9]{2}\) ?|\b[2-9][0-9]{2}[-.])[2-9][0-9]{2}[-.][0-9]{4}\b"
    # Australian mobile, with spaces.
    r"|\b04[0-9]{2} [0-9]{3} [0-9]{3}\b"
    # German mobile, with a space.
    r"|\b01[567][0-9] [0-9]{7,8}\b"
    # French mobile, with separators.
    r"|\b0[67](?:[ .-][0-9]{2}){4}\b"
    # British mobile, with spaces.
    r"|\b07[0-9]{3} [0-9]{3} ?[0-9]{3}\b"
    # International, with separators.
    r"|\+[1-9][0-9]{0,2}[- .]\(?[0-9]{1,5}\)?(?:[- .][0-9]{2,8}){1,4}\b"
)
_AT, _DOT = r" ?[\[(](?:at|AT)[\])] ?", r"(?:\.| ?[\[(](?:dot|DOT)[\])] ?)"
EMAIL = (
    r"\b[A-Za-z0-9._%+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}\b"
    # Spelled out to hide it from robots.
    rf"|\b[A-Za-z0-9._%+-]{{1,64}}{_AT}(?:[A-Za-z0-9-]{{1,63}}{_DOT}){{1,8}}[A-Za-z]{{2,24}}\b"
)
API_KEY = (
    r"\bsk-(?:ant-|proj-)?[A-Za-z0-9_-]{20,}|\bAKIA[0-9A-Z]{16}\b|\bgh[pousr]_[A-Za-z0-9]{36}\b|\bgithub_pat_\w{22,}"
    r"|\bAIza[A-Za-z0-9_-]{35}|\bhf_[A-Za-z0-9]{28,}\b|\bxox[abprs]-[A-Za-z0-9-]{10,}|\b[sr]k_live_[A-Za-z0-9]{16,}"
    r"|\bglpat-[A-Za-z0-9_-]{20,}|-----BEGIN (?:[A-Z]+ )?PRIVATE KEY-----"
    r"|(?i:\b\w*(?:key|token|secret)[\"']?\s*[:=]\s*[\"'][A-Za-z0-9+/%_=-]{32,}[\"'])"
    r"|\b(?:Bearer|KakaoAK|Token) [A-Za-z0-9._-]{32,}"
)
# Addresses that belong to nobody: names reserved for examples (RFC 2606), and placeholder domains
# of manuals.
NOBODY = re.compile(
    r"[@.](?:example\.[a-z.]{2,6}|examples?|test|invalid|localhost|local)$"
    r"|@(?:[\w-]+\.)*(?:domain|yourdomain|mydomain|somedomain|anydomain|sample|yoursite|mysite|website|yourwebsite|"
    r"email|mail|emailaddress|"
    r"company|yourcompany|mycompany|acme|test|abc|xyz|foo|bar|host|server|foobar|placeholder|dummy|"
    r"fake)\.[a-z.]{2,7}$"
    r"|@users\.noreply\.github\.com$|@[\w.-]*(?:example|yourcompany|your-company|your-domain|yourdomain|"
    r"yourapp)[\w.-]*$",
    re.IGNORECASE,
)
# Addresses of roles and placeholder persons.
ROLES = re.compile(
    r"^(?:info|support|contact|help|helpdesk|hello|admin|administrator|root|webmaster|postmaster|hostmaster|sales|"
    r"service|services|office|team|press|"
    r"media|jobs|careers|hr|privacy|abuse|security|billing|orders?|booking|bookings|reservations?|feedback|news|"
    r"newsletter|marketing|noreply|no-reply|"
    r"do-not-reply|donotreply|alerts?|notifications?|updates?|accounts?|members?|membership|events?|subscriptions?|"
    r"editors?|reception|frontdesk|legal|finance|"
    r"hiring|recruit(?:ing|ment)?|talent|apply|library|tickets?|store|shop|ask|community|partners?|partnerships|"
    r"volunteers?|donations?|payments?|returns?|mailer-daemon|customerservice|customer\.?(?:service|care|support)|"
    r"customersupport|inquir(?:y|ies)|enquir(?:y|ies)|"
    r"test\w*|tester|user\w{0,3}|username|users?|sample|demo|dummy|foo|bar|abc|xyz|me|you|your|yours|myemail|"
    r"your\.?e?mail|your\.?name|name|yourname|email|e-mail|"
    r"mail|address|someone|somebody|anyone|recipient|sender|from|to|receiver|first\.?last|firstname|lastname|"
    r"first\.?name\.?last\.?name|"
    r"john|jane|john[._]?doe|jane[._]?doe|jdoe|doe|john\d{0,3}|jane\d{0,3}|john[._]?smith|jane[._]?smith|jsmith|"
    r"johndoe\d{0,3}|janedoe\d{0,3}|alice|bob|"
    r"git|git-user|postgres|mysql|ubuntu|ec2-user|deploy|x+|a|b|c|u)$",
    re.IGNORECASE,
)
# Words of a question that asks for made-up data, or contains some.
MADE_UP = re.compile(
    r"\bfak(?:e|er|ed|ing)\b|\bfictional|\bfictitious|\bimaginary\b|\bmade[- ]?up\b|\bmake up\b|\bmake[- ]believe|"
    r"\bdummy\b|\bsample\b|\brandom(?:ly)?\b|\bmock(?:ed)?\b|\binvent(?:ed)?\b|"
    r"\bplaceholder|\btest (?:data|users?|accounts?|records?|cards?|numbers?)\b|\bexample (?:data|contacts?|users?|"
    r"records?|numbers?|address|e-?mails?)\b|\bhypothetical|"
    r"\bnot real\b|\bseed data\b|\bgenerate (?:\w+ ){0,3}(?:phone|e-?mail|contact|user|customer)|\bregex|"
    r"\bregular expression|\bvalidat|\bpattern\b|"
    r"가짜|가상|허구|샘플|예시|임의|더미|지어 ?낸|만들어 ?낸|테스트(?:용)? ?(?:데이터|계정|카드|번호)|무작위|꾸며|"
    r"정규 ?표현|정규식|유효성|형식",
    re.IGNORECASE,
)
_PATTERN_NEAR = re.compile(r"[\\^$*+?\[\]{}|]")
FAMOUS_CARDS = frozenset(
    (
        "4111111111111111", "4242424242424242", "4012888888881881", "4000056655665556", "4000000000000002", "4000000000000077",
        "5555555555554444", "5105105105105100", "5200828282828210", "2223003122003222", "378282246310005", "371449635398431",
        "378734493671000", "6011111111111117", "6011000990139424", "30569309025904", "38520000023237", "3530111333300000",
        "3566002020360505", "4222222222222", "1234567890123456", "1234567812345670", "4539578763621486",
    )
)  # fmt: skip


def is_resident_number(text: str) -> bool:
    """Whether the last digit of a Korean resident registration number is the right check digit."""
    digits = _digits(text)
    weights = (2, 3, 4, 5, 6, 7, 8, 9, 2, 3, 4, 5)
    total = sum(weight * digit for weight, digit in zip(weights, digits, strict=False))
    foreigner = 2 if len(digits) == 13 and digits[6] in (5, 6, 7, 8) else 0
    return len(digits) == 13 and (11 - total % 11 + foreigner) % 10 == digits[-1]


def is_card(text: str) -> bool:
    """Whether a number has 13 to 19 digits and the check digit of a card (Luhn, ISO/IEC 7812-1)."""
    digits = _digits(text)
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[-2::-2]]
    return 13 <= len(digits) <= 19 and (sum(digits[::-2]) + sum(doubled)) % 10 == 0


# Length → how issuers' numbers of that length begin. Others are bar codes, sums and times in
# milliseconds.
ISSUER_PREFIXES = {13: r"4", 14: r"3[068]", 15: r"3[47]", 16: r"4|5[1-5]|2[2-7]|6|35|9", 19: r"4|6"}


def is_somebodys_card(text: str) -> bool:
    """Whether a number is a real card's: check digit and prefix fit, and it is no well-known test
    number."""
    digits = "".join(map(str, _digits(text)))
    begins = ISSUER_PREFIXES.get(len(digits))
    grouped = len(digits) < len(text)
    if (
        not begins
        or not re.match(begins, digits)
        or (not grouped and (digits[0] == "9" or len(digits) not in (15, 16)))
    ):
        return False
    return is_card(text) and digits not in FAMOUS_CARDS and len(set(digits)) > 3


def is_email(text: str) -> bool:
    """Whether an address may be a person's: not one of documentation, of a role, or a
    placeholder."""
    text = re.sub(_DOT, ".", re.sub(_AT, "@", text))
    local = text.split("@")[0]
    return (
        not NOBODY.search(text)
        and not ROLES.match(local)
        and not re.search(r"\d+x$|\.(?:png|jpe?g|gif|svg|webp|js|css|py)$", text)
    )


def is_phone(text: str) -> bool:
    """Whether a number may be somebody's: not one reserved for fiction, of a hotline, or with
    digits in sequence."""
    digits = "".join(sign for sign in text if sign.isdigit())
    # ITU-T E.164 limits the length.
    if text.startswith("+") and not 9 <= len(digits) <= 15:
        return False
    national = re.sub(r"^(?:82|1|44|0)(?=\d{9,})", "", digits)
    if re.search(r"555(?:01\d\d)$|^(?:1)?555|555555|5551234|555\d{4}$", digits) or len(set(digits[-7:])) <= 2:
        return False
    if re.search(r"^(?:1?8(?:00|33|44|55|66|77|88)|1?900)", digits) and len(digits) in (10, 11):
        return False
    return not ("1234567" in digits or "7654321" in digits or _is_row(national[-8:]))


def _is_row(digits: str) -> bool:
    """Whether eight digits are an obvious filler: 0000-0000, 1111-1111, 1234-1234."""
    return digits[:4] == digits[4:] and (len(set(digits)) == 1 or digits[:4] in ("1234", "0123", "4321"))


def is_key(text: str) -> bool:
    """Whether a key may be real: not one of documentation, and not a run of a few characters."""
    body = re.sub(r"^[a-zA-Z]{2,10}[-_]", "", text)
    if re.search(
        r"example|xxxx|your|\.\.\.|placeholder|1234567890|abcdefgh|0123456789|test_?key|dummy|sample",
        text,
        re.IGNORECASE,
    ):
        return False
    return (len(set(body)) >= 8 and any(map(str.isdigit, text))) or text.startswith("-----")


def _digits(text: str) -> list[int]:
    return [int(sign) for sign in text if sign.isdigit()]


KINDS: dict[str, tuple[str, Check]] = {
    "resident_number": (f"{RESIDENT_NUMBER}|{SOCIAL_SECURITY_NUMBER}", is_resident_number),
    "card": (CARD, is_somebodys_card),
    "phone": (PHONE, is_phone),
    "email": (EMAIL, is_email),
    "api_key": (API_KEY, is_key),
}
# The replacements in a redacted record: example values of documentation, so that the text still
# reads well.
REPLACEMENTS = {
    "resident_number": "000000-0000000",
    "card": "0000-0000-0000-0000",
    "phone": "000-0000-0000",
    "email": "user@example.com",
    "api_key": "REDACTED",
}


@dataclass(frozen=True)
class Place:
    """A piece of personal data in a text: its kind, start and end."""

    kind: str
    start: int
    end: int


def places_in(text: str, kinds: Sequence[str]) -> list[Place]:
    """Places of personal data of these kinds in `text`, in order and without overlaps."""
    places: list[Place] = []
    for kind in kinds:
        pattern, check = KINDS[kind]
        # ASCII word boundaries, as in SQL: a Korean particle right after a number does not belong
        # to it.
        for match in re.finditer(pattern, text, re.ASCII):
            inside = any(match.start() < each.end and each.start < match.end() for each in places)
            is_named = _is_named_card(kind, text, match) or _is_named_resident_number(kind, text, match)
            if not inside and (check(match[0]) or is_named) and not _in_pattern(text, match):
                places.append(Place(kind, match.start(), match.end()))
    return sorted(places, key=lambda each: each.start)


def _is_named_card(kind: str, text: str, match: re.Match[str]) -> bool:
    """Whether a number in four groups of four, which the text calls a card number, is one with a
    mistyped digit."""
    groups = re.fullmatch(r"\d{4}([ -])\d{4}\1\d{4}\1\d{4}", match[0])
    label = re.search(
        r"(?:카드 ?번호|card (?:number|no)|my card|credit card)[^\n\d]{0,25}$", text[: match.start()], re.IGNORECASE
    )
    digits = "".join(map(str, _digits(match[0])))
    return kind == "card" and bool(groups and label) and digits not in FAMOUS_CARDS and len(set(digits)) > 4


def _is_named_resident_number(kind: str, text: str, match: re.Match[str]) -> bool:
    """Whether a hyphenated number is a resident number because the text mentions such numbers.

    Korean ones have had no check digit since October 2020, and those of the United States never had
    one.
    """
    number = "".join(map(str, _digits(match[0])))
    if kind == "resident_number" and len(number) == 9:
        known = number in ("123456789", "078051120") or re.match("000|666", number) or number.endswith("0000")
        return not known and bool(re.search(r"\bSSN\b|social security", text, re.IGNORECASE))
    obvious = "1234567" in number or len(set(number[6:])) <= 3
    return (
        kind == "resident_number" and "-" in match[0] and not obvious and bool(re.search("주민 ?(?:등록 ?)?번호", text))
    )


_OF_A_BUSINESS = re.compile(
    r"\b(?:call|contact|reach|phone|text|dial|visit) us\b[^.\n]{0,40}$|\b(?:hotline|helpline|toll[- ]free|"
    r"customer (?:service|care|support)|support line|front desk|"
    r"reservations?|box office)\b[^.\n]{0,30}$|(?:고객 ?센터|대표 ?(?:번호|전화)|상담 ?(?:센터|전화)|콜센터|"
    r"민원)[^.\n]{0,20}$",
    re.IGNORECASE,
)


def _in_pattern(text: str, match: re.Match[str]) -> bool:
    """Whether a match is part of a regular expression, of a sum or of a longer number, or is a
    business's own number."""
    before, after = text[max(0, match.start() - 3) : match.start()], text[match.end() : match.end() + 3]
    if _PATTERN_NEAR.search(before[-1:]) and _PATTERN_NEAR.search(after[:1]) and "[" not in before[-1:]:
        return True
    if "\\" in before[-2:] or ("\\" in after[:1] and after[1:2] in "dwsb."):
        return True
    # A sum.
    if match[0].isdigit() and (re.search(r"[-+*/=×÷^%<>]\s?$", before) or re.match(r"\s?[-+*/=×÷^%]", after)):
        return True
    if _OF_A_BUSINESS.search(text[max(0, match.start() - 60) : match.start()]) and not match[0].count("@"):
        return True
    return match[0][-1].isdigit() and match[0][0].isdigit() and _in_longer_number(before, after)


def _in_longer_number(before: str, after: str) -> bool:
    return bool(re.search(r"\d[-.]?$", before) or re.match(r"[-.]?\d", after) or re.search(r"\w-$", before))


def kinds_in(text: str, kinds: Sequence[str]) -> list[str]:
    """The kinds of personal data in `text`, in the order of `kinds`."""
    present = {place.kind for place in places_in(text, kinds)}
    return [kind for kind in kinds if kind in present]


def is_made_up(question: str) -> bool:
    """Whether the question asks for made-up data, or says that its own data is made up."""
    return bool(MADE_UP.search(question))


def redacted(text: str, kinds: Sequence[str]) -> str:
    """The text with every piece of personal data replaced by an example value."""
    for place in reversed(places_in(text, kinds)):
        text = text[: place.start] + REPLACEMENTS[place.kind] + text[place.end :]
    return text


def judge_personal_data(work: Work, settings: Cleaning) -> None:
    """Add a verdict for each record with personal data of a configured kind, or redact the data if
    so configured.

    The detail of a verdict names kinds, not the data.
    """
    kinds = settings.personal_data
    if not kinds:
        return
    pattern = quoted("|".join(KINDS[kind][0] for kind in kinds))
    candidates = work.db.sql(f"""
        SELECT n, instruction, input, output, messages, {TEXT} AS text
        FROM staged ANTI JOIN verdicts USING (n) WHERE regexp_matches({TEXT}, {pattern})
    """).to_arrow_reader(1000)
    matches = [
        {**row, "detail": "holds " + ", ".join(held_kinds)}
        for batch in candidates
        for row in batch.to_pylist()
        if (held_kinds := _kinds_held(row, kinds))
    ]
    if not matches:
        return
    if settings.on_personal_data == "redact":
        _redact(work, matches, kinds)
        return
    verdicts = [{"n": row["n"], "detail": row["detail"]} for row in matches]
    work.db.register("rejected", pa.Table.from_pylist(verdicts))
    work.db.execute("INSERT INTO verdicts (n, reason, detail) SELECT n, 'personal_data', detail FROM rejected")
    work.db.unregister("rejected")


_ARITHMETIC = re.compile(
    r"\b(?:add|plus|sum|subtract|minus|multipl|divide|product of|prime|factor|square root|modulo|digits?)\b|더하|"
    r"빼[면세]|곱하|나누|합은|소수",
    re.IGNORECASE,
)


def _kinds_held(row: dict[str, Any], kinds: Sequence[str]) -> list[str]:
    kinds_present = kinds_in(row["text"], kinds)
    question = "\n".join((row["instruction"], row["input"]))
    # Long numbers are there to calculate with.
    if _ARITHMETIC.search(question):
        kinds_present = [kind for kind in kinds_present if kind not in ("card", "resident_number")]
    if kinds_present and is_made_up(question):
        kinds_present = [kind for kind in kinds_present if kind == "api_key" and kind in kinds_in(question, kinds)]
    return kinds_present


def _redact(work: Work, rows: list[dict[str, Any]], kinds: Sequence[str]) -> None:
    redacted_rows = [restaged(row["n"], *_cleared(row, kinds)) for row in rows]
    schema = pa.schema([COLUMNS.field(name) for name in redacted_rows[0]])
    work.db.register("changed", pa.Table.from_pylist(redacted_rows, schema=schema))
    columns = ", ".join(f"{name} = changed.{name}" for name in redacted_rows[0] if name != "n")
    work.db.execute(f"UPDATE staged SET {columns} FROM changed WHERE staged.n = changed.n")
    work.db.unregister("changed")


def _cleared(row: dict[str, Any], kinds: Sequence[str]) -> tuple[dict[str, str], list[dict[str, Any]]]:
    texts = {name: redacted(row[name], kinds) for name in ("instruction", "input", "output")}
    turns = [{**turn, "content": redacted(turn["content"], kinds)} for turn in json.loads(row["messages"] or "[]")]
    return texts, turns
