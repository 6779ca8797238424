"""Answers that are only the question again: word for word, in quotation marks, or with a word or two changed or added.

Where the task is to give back what was given (correct, rewrite, complete, copy, choose), the input may come back; the task may not.
"""

import re
from difflib import SequenceMatcher

from pipelines.clean.exchange import Exchange
from pipelines.clean.prose import QUOTED, is_code

_LABEL = re.compile(
    r"\A\W*(?:(?:the )?(?:question|instruction|prompt|input|query|task|request|q|user|human)(?: is)?\s*[:：]|"
    r"(?:the )?user (?:asks|says|wants|asked)\s*[:：]?|"
    r"you (?:asked|want|said)\s*[:：]|sure[!,.]|okay[!,.]|of course[!,.]|certainly[!,.]|질문\s*[:：]|지시(?:문|"
    r"사항)?\s*[:：]|"
    r"문제\s*[:：]|입력\s*[:：]|네[,.]|"
    r"사용자(?:의)? ?질문\s*[:：])\s*",
    re.IGNORECASE,
)
_TEMPLATE = re.compile(
    r"^\W*(?:###? ?)?(?:instruction|input|response|output|answer|question)s?\s*:?\s*$", re.IGNORECASE | re.MULTILINE
)
GIVES_BACK = re.compile(
    r"\bcorrect|\bproofread|\bfix\b|\bedit\b|\brewrit|\brephras|\bparaphras|\breformat|\bformat\b|\bunchanged|"
    r"\breturn\b|\brepeat|\bcopy\b|\bquote\b|\bextract|"
    r"\bselect\b|\bchoose\b|\bpick\b|\bwhich\b|\bidentify|\bfind\b|\bhighlight|\bcomplete\b|\bcontinue\b|\bconvert|"
    r"\bchange\b|\bmake (?:it|this)|\bremove\b|\badd\b|"
    r"\bsort|\border\b|\barrange|\brearrang|\bcapitali|\blower ?case|\bupper ?case|\bpunctuat|\bgrammar|\bspell|"
    r"\bsplit\b|\bjoin|\bcombine|\bmerge|\bimprove|\brefactor|"
    r"\bindent|\btrim|\bclean\b|\bimplement\b|\bspace|\bencode|\bdecode|\becho\b|\bsame\b|\btranscri|\breply with\b|"
    r"\bwrite (?:out|down)|\bsay\b|\bread\b|\bprint|\boutput|"
    r"\bspelled|\bmistake|\berrors?\b|\bedited|\borgani[sz]e|\bdivide|\bseparate|\bparagraph|\bchronolog|\bplace\b|"
    r"\bput\b|\bupdat|\bmodif|\btranspos|\bpolish|\bsimplif|\bshorten|\bsummar|\bclassif|\bcategor|\bedit|"
    r"맞춤법|띄어|고쳐|고치|교정|수정|바꿔|바꾸|다듬|완성|이어|그대로|반복|따라|옮겨 ?(?:적|쓰)|골라|고르|찾아|뽑|"
    r"추출|정렬|인용|채워|추가|삭제|순서|형식|복사|베껴|요약|분류|합쳐",
    re.IGNORECASE,
)
_LEADS_ON = re.compile(
    r"\S[:：]\s*\n*\s*(?:```|`|\$|[\[({<\\/^]|\d)|\n\s*(?:```|\||<)"
)  # to a formula, a pattern, code: that is the answer
ALIKE = 0.86  # of two texts in a row, signs apart
JUDGED_CHARS = 600
LEAST_CHARS = 8
MOST_NEW = 0.25  # of the echo's length may be new beside it
_STOP = frozenset(
    (
        "a", "an", "the", "to", "of", "and", "or", "in", "on", "at", "is", "are", "was", "were", "do", "does", "did", "you", "your",
        "me", "my", "i", "it", "its", "for", "with", "as", "by", "be", "can", "could", "please", "sure", "here", "this", "that",
        "question", "answer", "asks", "user", "says", "보시오", "보세요", "봐", "주세요", "주십시오", "줘", "주시오", "하시오",
        "해", "해줘", "좀",
    )
)  # fmt: skip


def judge(exchange: Exchange, *, max_share: float) -> str | None:
    """What the answer gives back where it is only that, else None."""
    if not _shares_words(exchange.answer, exchange.question):
        return None
    answer = _TEMPLATE.sub(" ", exchange.answer)
    answer = _LABEL.sub("", answer.strip())
    if not answer.strip() or len(answer) > 4 * JUDGED_CHARS or _LEADS_ON.search(answer):
        return None
    told = plain(answer)
    task, given = _parts(exchange.question)
    gives_back = bool(given and GIVES_BACK.search(given))  # what is given may stand before the task
    if len(told) >= LEAST_CHARS and not gives_back and _is_again(told, answer, task, max_share):
        return "the answer is the question again"
    if given and _is_input_again(exchange, answer, task, given):
        return "the answer is the input again"
    return None


def _shares_words(answer: str, question: str) -> bool:
    """Whether most words of the answer stand in the question, so that it may be that again; read before anything dear."""
    words = answer[: 4 * JUDGED_CHARS].lower().split()
    known = set(question.lower().split())
    return 2 * sum(word in known for word in words) >= len(words) or len(words) <= 12


def _parts(question: str) -> tuple[str, str]:
    """The question, and the last paragraph of it that may be what was given: the record's input."""
    head, _, rest = question.partition("\n")
    return question if not rest else head, rest


def plain(text: str) -> str:
    """Letters and digits of a text in lower case, one space between words."""
    return " ".join(re.findall(r"\w+", text.lower()))


def _is_again(told: str, answer: str, task: str, max_share: float) -> bool:
    asked = plain(task)
    if len(asked) < LEAST_CHARS or len(asked) > JUDGED_CHARS or len(told) > 3 * len(asked) + 20:
        return False
    if told == asked:
        return True
    if told.startswith(asked):
        rest = told[len(asked) :].strip()
        if plain(rest.replace(asked, " ")) == "" or _adds_nothing(rest, asked):
            return True
        if _answers_after(answer, task):
            return False
        return len(asked) > max_share * len(told) and len(rest) <= MOST_NEW * len(asked)
    if asked in told:
        rest = told.replace(asked, " ").strip()
        return len(asked) > max_share * len(told) and (_adds_nothing(rest, asked) or len(rest) <= 0.15 * len(asked))
    if GIVES_BACK.search(task) or QUOTED.search(task) or ":" in task:  # what it gives back may be the answer
        return False
    return _alike(told, asked)


def _adds_nothing(rest: str, asked: str) -> bool:
    known = set(asked.split()) | _STOP
    return all(word in known for word in rest.split())


def _answers_after(answer: str, task: str) -> bool:
    """Whether something new follows the question as a sentence or a line of its own."""
    end = re.escape(task.strip().rstrip("?.!。")[-12:])
    found = re.search(end + r"[\"'”’]?\s*(?:[?.!。:]+[\"'”’)]*|\n)\s*(?=\S)", answer, re.IGNORECASE)
    return bool(found) and not _adds_nothing(plain(answer[found.end() :]), plain(task))


def _alike(one: str, other: str) -> bool:
    if not 0.6 < len(one) / len(other) < 1.6:
        return False
    matcher = SequenceMatcher(None, one, other, autojunk=False)
    return (
        matcher.real_quick_ratio() >= ALIKE
        and matcher.quick_ratio() >= ALIKE
        and matcher.ratio() >= ALIKE
        and _same_words(one, other)
    )


def _same_words(one: str, other: str) -> bool:
    """Whether hardly a word of meaning is new in `one`."""
    known = set(other.split())
    new = [word for word in one.split() if word not in known and word not in _STOP and not _inflected(word, known)]
    return not new


def _inflected(word: str, known: set[str]) -> bool:
    return len(word) > 2 and any(each[:2] == word[:2] and abs(len(each) - len(word)) <= 3 for each in known)


def _bare(text: str) -> str:
    """A text in lower case without the quotation marks around it: every other sign counts, since it may have been the task."""
    return " ".join(text.lower().split()).strip("\"'“”‘’ ")


def _lines(text: str) -> int:
    return len([line for line in text.split("\n") if line.strip()])


def _is_input_again(exchange: Exchange, answer: str, task: str, given: str) -> bool:
    if len(plain(given)) < LEAST_CHARS or _bare(answer) != _bare(given) or _lines(answer) != _lines(given):
        return False
    if given.strip().endswith("?") and not re.search(
        r"translat|rewrit|rephras|paraphras|correct|번역|고쳐|바꿔", task, re.IGNORECASE
    ):
        return True
    if GIVES_BACK.search(task):
        return False
    return not (is_code(answer) and re.search(r"\bvalid|\bcheck|\bformat", task, re.IGNORECASE))
