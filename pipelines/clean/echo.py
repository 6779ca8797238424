"""Answers that only repeat the question: word for word, in quotation marks, or with a word or two
changed or added.

If the task is to return its input (correct, rewrite, complete, copy, choose), the input may come
back, but not the task.
"""

import re
from difflib import SequenceMatcher

from pipelines.clean.comparable import visible
from pipelines.clean.exchange import Exchange
from pipelines.clean.prose import QUOTED, is_code

# A label in front of a repeated question.
_LABEL = re.compile(
    r"\A\W*(?:(?:the )?(?:question|instruction|prompt|input|query|task|request|q|user|human)(?: is)?\s*[:：]|"
    r"(?:the )?user (?:asks|says|wants|asked)\s*[:：]?|"
    r"you (?:asked|want|said)\s*[:：]|sure[!,.]|okay[!,.]|of course[!,.]|certainly[!,.]|질문\s*[:：]|문제\s*[:：)]|"
    r"원문\s*[:：]|문장\s*[:：]|(?:the )?(?:sentence|text|passage|paragraph|statement)\s*[:：]|지시(?:문|"
    r"사항)?\s*[:：]|"
    r"문제\s*[:：]|입력\s*[:：]|네[,.]|"
    r"사용자(?:의)? ?질문\s*[:：])\s*",
    re.IGNORECASE,
)
# Headings of prompt templates.
_TEMPLATE = re.compile(
    r"^\W*(?:###? ?)?(?:instruction|input|response|output|answer|question|user|assistant|질문|답변|사용자|봇|"
    r"지시|명령어?|응답|입력|출력)s?\s*[:：]?\s*$|^###? ?(?:질문|답변)\s*[:：]",
    re.IGNORECASE | re.MULTILINE,
)
# Special tokens of chat templates left in the text, such as the end of text.
_TOKENS = re.compile(
    r"<\|[^|<>\n]{1,30}\|>|</?s>|\[(?:EOS|/?INST)\]|(?<=<\|im_start\|>)(?:user|"
    r"assistant)\b",
    re.IGNORECASE,
)
# Tasks whose answer may return the input.
GIVES_BACK = re.compile(
    r"\bcorrect|\bproofread|\bfix\b|\bedit\b|\brewrit|\brephras|\bparaphras|\breformat|\bformat\b|\bunchanged|"
    r"\breturn\b|\brepeat|\bcopy\b|\bquote\b|\bextract|"
    r"\bselect\b|\bchoose\b|\bpick\b|\bwhich\b|\bidentify|\bfind\b|\bhighlight|\bcomplete\b|\bdelete|\bkeep\b|\bcut\b|\bomit|\breduce|\bcontinue\b|\bconvert|"
    r"\bchange\b|\bmake (?:it|this)|\bremove\b|\badd\b|"
    r"\bsort|\border\b|\barrange|\brearrang|\bcapitali|\blower ?case|\bupper ?case|\bpunctuat|\bgrammar|\bspell|"
    r"\bsplit\b|\bjoin|\bcombine|\bmerge|\bimprove|\brefactor|"
    r"\bindent|\btrim|\bclean\b|\bimplement\b|\bspace|\bencode|\bdecode|\becho\b|\bsame\b|\btranscri|\breply with\b|"
    r"\bwrite (?:out|down)|\bsay\b|\bread\b|\bprint|\boutput|"
    r"\bspelled|\bmistake|\berrors?\b|\bedited|\borgani[sz]e|\bdivide|\bseparate|\bchronolog|\bplace\b|"
    r"\bput\b|\bupdat|\bmodif|\btranspos|\bpolish|\bedit|"
    r"맞춤법|띄어|고쳐|고치|교정|수정|바꿔|바꾸|다듬|완성|이어|그대로|반복|따라|옮겨 ?(?:적|쓰)|골라|고르|찾아|뽑|"
    r"추출|정렬|부호|인용|채워|추가|삭제|순서|형식|복사|베껴|합쳐",
    re.IGNORECASE,
)
# An introduction to a formula, a pattern or code, which is the answer.
_LEADS_ON = re.compile(r"\S[:：]\s*\n*\s*(?:```|`|\$|[\[({<\\/^]|\d)|\n\s*(?:```|\||<)")
# Tasks that change the input, so that the input itself is no answer, however short it is.
_MUST_CHANGE = re.compile(
    r"\bantonym|\bopposite|\bsynonym|\bpassive|\b(?:past|present|future) tense|\brephras|\bparaphras|\brewrit|"
    r"\bin other words|반대말|"
    r"반의어|유의어|비슷한말",
    re.IGNORECASE,
)
_IF_NEEDED = re.compile(r"\bif (?:needed|necessary|there|it|any)|필요", re.IGNORECASE)
# Characters. An input for a headline or a summary is longer than this.
LONG_GIVEN = 40
# Tasks whose answer is another kind of text than the input.
_MAKES_ANOTHER = re.compile(
    r"\bsummar|\bshorten|\bheadline|\btitle(?! case)|\bcondense|\bsentiment|\bclassif|\bcategor|\banaly[sz]|\bexplain|"
    r"요약|제목|줄여|간추|감정|분류|분석|설명",
    re.IGNORECASE,
)
_TRANSLATES = re.compile(r"\btranslat|번역|[가-힣]+어로 (?:옮|바꾸|바꿔|써|적)", re.IGNORECASE)
# Similarity (difflib ratio) from which an answer that also asks or orders repeats the question.
ALIKE_QUESTIONS = 0.8
# Similarity (difflib ratio) of two texts without punctuation from which one repeats the other.
ALIKE = 0.86
JUDGED_CHARS = 600
LEAST_CHARS = 8
# New text beside the echo, at most, as a share of the echo's length.
MOST_NEW = 0.25
# Words without a meaning of their own here.
_STOP = frozenset(
    (
        "a", "an", "the", "to", "of", "and", "or", "in", "on", "at", "is", "are", "was", "were", "do", "does", "did", "you", "your",
        "me", "my", "i", "it", "its", "for", "with", "as", "by", "be", "can", "could", "please", "sure", "here", "this", "that",
        "question", "answer", "asks", "user", "says", "response", "output", "solution", "sentence", "text",
        "보시오", "보세요", "봐", "주세요", "주십시오", "줘", "주시오", "하시오", "해", "해줘", "좀", "달라는",
        "요청입니다", "질문입니다", "당신에게", "나에게", "제게", "저에게", "당신의", "나의", "제", "네", "답변", "답",
    )
)  # fmt: skip


def judge(exchange: Exchange, *, max_share: float) -> str | None:
    """What the answer repeats, if it does nothing else; None otherwise."""
    # Cheap checks first: most answers share few words with their question.
    exchange = Exchange(visible(exchange.question), visible(exchange.answer), exchange.before)
    if not _shares_words(exchange.answer, exchange.question):
        return None
    answer = _TEMPLATE.sub(" ", _TOKENS.sub(" ", exchange.answer))
    answer = _LABEL.sub("", answer.strip())
    if not _can_be_an_echo(answer):
        return None

    # Question and input together, in the same order.
    answer_words = re.sub(r"(?:에 대한|달라는|하라는|라는|냐는)? ?(?:질문|요청)입니다$", "", plain(answer))
    task, input_text = _parts(_LABEL.sub("", _TEMPLATE.sub(" ", _TOKENS.sub(" ", exchange.question)).strip()).strip())
    question_words = plain(exchange.question)
    if input_text and _repeats_question_and_input(answer_words, question_words, plain(task)):
        return "the answer is the question and its input again"

    # The task alone, rearranged or word for word. If a later line orders to return a text, the
    # first line may be that text, so it is no echo.
    gives_back = bool(input_text and GIVES_BACK.search(input_text))
    if not gives_back and (
        detail := _rearranges_question(exchange, answer, task, input_text, most_other=min(MOST_NEW, 1 - max_share))
    ):
        return detail
    if len(answer_words) >= LEAST_CHARS and not gives_back and _repeats_task(answer_words, answer, task, max_share):
        return "the answer is the question again"

    # The input alone, for a task that must change it.
    input_text = input_text or _to_be_translated(task)
    if input_text and _repeats_input(exchange, answer, task, input_text):
        return "the answer is the input again"
    return None


def _can_be_an_echo(answer: str) -> bool:
    return bool(answer.strip()) and len(answer) <= 4 * JUDGED_CHARS and not _LEADS_ON.search(answer)


def _repeats_question_and_input(answer_words: str, question_words: str, task: str) -> bool:
    return len(question_words) >= LEAST_CHARS and (
        answer_words == question_words or _nearly_repeats_both(answer_words, question_words, task)
    )


def _to_be_translated(task: str) -> str:
    """The text to translate, after a colon or in quotation marks; "" if the task is not to
    translate."""
    if not _TRANSLATES.search(task):
        return ""
    return task.partition(":")[2].strip() or (QUOTED.findall(task) or [""])[-1]


def _rearranges_question(
    exchange: Exchange, answer: str, task: str, input_text: str, *, most_other: float
) -> str | None:
    """How the answer repeats the question in another order or without its verb; None if it does
    not."""
    answer_words = plain(answer)
    if input_text and answer_words.startswith(plain(task)) and _holds_the_same_words(answer, f"{task} {input_text}"):
        return "the answer is the question and its input again"
    if _copies_question(answer, exchange.question):
        return "the answer is a question that was asked"
    if _repeats_order(answer, task) and _holds_the_same_words(answer, f"{task} {input_text}", most_other=most_other):
        return "the answer gives the question's order again"
    # The answer to a choice or a yes-or-no question has the same words, too.
    if _MAY_BE_THE_ANSWER.search(task) or _orders_to_give_back(task) or QUOTED.search(task) or ":" in task:
        return None
    if _is_tail(answer_words, task):
        return "the answer is what the question orders, without the order"
    return "the answer is the question in other order" if _holds_the_same_words(answer, task) else None


def _shares_words(answer: str, question: str) -> bool:
    """Whether most words of the answer occur in the question. Cheap, so it is checked first."""
    words = answer[: 4 * JUDGED_CHARS].lower().split()
    known = set(question.lower().split())
    return 2 * sum(word in known for word in words) >= len(words) or len(words) <= 12


def _parts(question: str) -> tuple[str, str]:
    """The first line of the question as the task, and the rest, which may be the record's input."""
    head, _, rest = question.partition("\n")
    return question if not rest else head, rest


def plain(text: str) -> str:
    """Letters and digits of a text in lower case, one space between words."""
    return " ".join(re.findall(r"\w+", text.lower()))


def _nearly_repeats_both(answer_words: str, question_words: str, task: str) -> bool:
    """Whether question and input come back with a word or two changed, the question first."""
    head = SequenceMatcher(None, answer_words[: len(task)], task, autojunk=False)
    return (
        len(question_words) <= JUDGED_CHARS
        and head.quick_ratio() >= ALIKE
        and head.ratio() >= ALIKE
        and _alike(answer_words, question_words)
    )


def _says_nothing_new(rest: str, task_words: str) -> bool:
    return plain(rest.replace(task_words, " ")) == "" or _adds_nothing(rest, task_words)


def _repeats_task(answer_words: str, answer: str, task: str, max_share: float) -> bool:
    task_words = plain(task)
    if len(task_words) < LEAST_CHARS or len(task_words) > JUDGED_CHARS or len(answer_words) > 3 * len(task_words) + 20:
        return False
    if answer_words.replace(" ", "") == task_words.replace(" ", ""):
        return True
    if answer_words.startswith(task_words):
        rest = answer_words[len(task_words) :].strip()
        few = len(task_words) > max_share * len(answer_words) and len(rest) <= MOST_NEW * len(task_words)
        return _says_nothing_new(rest, task_words) or (few and not _answers_after(answer, task))
    if task_words in answer_words:
        rest = answer_words.replace(task_words, " ").strip()
        return len(task_words) > max_share * len(answer_words) and (
            _adds_nothing(rest, task_words) or len(rest) <= 0.15 * len(task_words)
        )
    if _still_asks(answer, task):
        return _alike(answer_words, task_words, most_new=1, least=ALIKE_QUESTIONS)
    return not _may_be_given_back(task) and not _YES_OR_NO.match(task) and _alike(answer_words, task_words)


def _may_be_given_back(task: str) -> bool:
    """Whether text from the task may be the answer."""
    return bool(GIVES_BACK.search(task) or QUOTED.search(task)) or ":" in task


def _holds_the_same_words(answer: str, task: str, *, most_other: float = 0.0) -> bool:
    """Whether answer and question have the same content words; a share `most_other` of each side
    may differ."""
    task_words, answer_words = set(_words_of_meaning(task)), set(_words_of_meaning(_LABEL_IN.sub(" ", answer)))
    asks_too = (_QUESTION.search(answer) and _QUESTION.search(task)) or _repeats_order(answer, task)
    least = LEAST_WORDS - 1 if asks_too else LEAST_WORDS
    if len(task_words) < least or not answer_words:
        return False
    missing = sum(not _is_among(word, answer_words) for word in task_words)
    new = sum(not _is_among(word, task_words) for word in answer_words)
    return missing <= most_other * len(task_words) and new <= most_other * len(answer_words)


def _is_among(word: str, known: set[str]) -> bool:
    """Whether a word, or a form of it, is among `known`: by its first letters or Korean syllables,
    and its length."""
    if word in known or not word.isalpha():
        return word in known
    if "가" <= word[0] <= "힣":
        return _inflected(word, known)
    return any(word[:STEM] == each[:STEM] and abs(len(word) - len(each)) <= 3 for each in known if len(word) >= STEM)


# Letters that two forms of a word share.
STEM = 4


def _repeats_order(answer: str, task: str) -> bool:
    """Whether an answer begins (in Korean: ends) with the order of its question, as no real answer
    does."""
    if _orders_to_give_back(task) or QUOTED.search(answer):
        return False
    answer_words, task_words = plain(answer).split(), plain(task).split()
    if not answer_words or not task_words or len(answer) > JUDGED_CHARS:
        return False
    return (answer_words[0] == task_words[0] and bool(_ORDERS.match(answer))) or (
        answer_words[-1] == task_words[-1] and bool(_KOREAN_ORDER.search(answer))
    )


def _is_tail(answer_words: str, task: str) -> bool:
    """Whether an answer is only the end of an order: tell me about *the history of the bicycle*."""
    is_order = _ORDERS.match(task) and not _QUESTION.search(task)
    return bool(is_order) and len(answer_words.split()) >= LEAST_WORDS and plain(task).endswith(f" {answer_words}")


def _copies_question(answer: str, question: str) -> bool:
    """Whether an answer only copies a question from the prompt, although the task does not ask for
    a question."""
    if (
        not _QUESTION.search(answer)
        or len(answer) < LEAST_CHARS
        or GIVES_BACK.search(question)
        or _WANTS_A_QUESTION.search(question)
    ):
        return False
    before, copy, _ = " ".join(question.lower().split()).partition(_bare(answer))
    return bool(copy) and (not before.strip() or before.rstrip()[-1] in ".?!:：。")


def _orders_to_give_back(task: str) -> bool:
    """Whether the verb of an order (at its start, in Korean at its end) asks to return the
    input."""
    words = task.split()
    return bool(GIVES_BACK.search(" ".join(words[:3])) or GIVES_BACK.search(" ".join(words[-2:])))


_QUESTION = re.compile(r"[?？]\W*$")
_KOREAN_ORDER = re.compile(r"(?:시오|세요|줘|라|합니다|해요|한다)[.!?\s]*$")
_WANTS_A_QUESTION = re.compile(
    r"\bquestions?\b(?! (?:below|above|following|about the))|질문[을 ]?(?:만들|작성|생성|써|하나)", re.IGNORECASE
)
LEAST_WORDS = 3
_LABEL_IN = re.compile(
    r"^\W*(?:Q|A|question|answer|instruction|response|질문|답변|답)\s*[:：]", re.IGNORECASE | re.MULTILINE
)
_YES_OR_NO = re.compile(
    r"\W*(?:is|are|was|were|do|does|did|has|have|had|will|would|should|can|could) (?!you)", re.IGNORECASE
)
_MAY_BE_THE_ANSWER = re.compile(
    r"\A\W*(?:is|are|was|were|do|does|did|has|have|had|will|would|should|may|might|can (?!you)|could (?!you)|in|use|"
    r"using|true|if)\b|\bor\b|\bwhether\b|"
    r"\bmake (?:a |an |up )?\w* ?sentence|\bsentences?\b|\bwords\b|\bsummar|\bheadline|\btitle|\bslogan|\bcaption|"
    r"중에|중 |인가요|입니까|나요|"
    r"문장|단어|제목|맞는|참|거짓|할까|일까|습니까",
    re.IGNORECASE,
)
_ORDERING = re.compile(
    r"write|give|list|tell|name|create|generate|compose|explain|describe|make|suggest|provide|draft|design|help|show|"
    r"come|up|let|know|examples?|instance|list|description|explanation|want|need|like|some|any|while|there|these|those|such|"
    r"from|about|into|their|your|our|we|us|how|what|why|when|who|where|not|asked|asks|details?|"
    r"(?:써|쓰|적|알려|설명|작성|말해|소개|추천|제시|나열|만들|구하|문제|질문|요청|드리|드립|드릴|대해|대한|관한|관해|무엇|어디|어떻게|왜)[가-힣]*"
)
_PARTICLE = re.compile("(?<=[가-힣])(?:이란|란|을|를|은|는|이|가|의|에|에서)$")


_NUMBERS = {
    "two": "2",
    "three": "3",
    "four": "4",
    "five": "5",
    "six": "6",
    "seven": "7",
    "eight": "8",
    "nine": "9",
    "ten": "10",
}


def _words_of_meaning(text: str) -> list[str]:
    words = plain(re.sub(r"['’]s\b", "", text)).split()
    words = [_NUMBERS.get(word, word) for word in words]
    return [_PARTICLE.sub("", word) for word in words if word not in _STOP and not _ORDERING.fullmatch(word)]


def _still_asks(answer: str, task: str) -> bool:
    """Whether an answer asks or orders like its question, as no real answer does."""
    order = re.compile(r"(?:시오|세요|줘|달라|주십시오|라|까요?|요청입니다)[.!?\s]*$")
    if (_QUESTION.search(answer) and _QUESTION.search(task)) or re.search(r"(?:요청|질문)입니다\W*$", answer):
        return True
    first = [re.match(r"\W*(\w+)", text) for text in (answer.lower(), task.lower())]
    same = bool(first[0] and first[1] and first[0][1] == first[1][1])
    return same and bool(_ORDERS.match(task) or (order.search(answer) and order.search(task)))


_ORDERS = re.compile(
    r"\W*(?:explain|describe|write|list|give|tell|name|create|generate|compare|summari[sz]e|discuss|define|what|"
    r"why|how|who|when|where|which|"
    r"is|are|can|could|do|does|should|would|provide|suggest|recommend|design|outline|state|discuss|analy[sz]e|"
    r"calculate|find|show|translate)\b",
    re.IGNORECASE,
)


def _adds_nothing(rest: str, task_words: str) -> bool:
    known = set(task_words.split()) | _STOP
    return all(word in known for word in rest.split())


def _answers_after(answer: str, task: str) -> bool:
    """Whether something new follows the question in a sentence or line of its own."""
    end = re.escape(task.strip().rstrip("?.!。")[-12:])
    match = re.search(end + r"[\"'”’]?\s*(?:[?.!。:]+[\"'”’)]*|\n)\s*(?=\S)", answer, re.IGNORECASE)
    return bool(match) and not _adds_nothing(plain(answer[match.end() :]), plain(task))


def _alike(one: str, other: str, *, most_new: int = 0, least: float = ALIKE) -> bool:
    if not 0.6 < len(one) / len(other) < 1.6:
        return False
    matcher = SequenceMatcher(None, one, other, autojunk=False)
    return (
        matcher.real_quick_ratio() >= least
        and matcher.quick_ratio() >= least
        and matcher.ratio() >= least
        and _same_words(one, other, most_new)
    )


def _same_words(one: str, other: str, most_new: int) -> bool:
    """Whether at most `most_new` content words are new in `one`."""
    known = set(other.split())
    new = [word for word in one.split() if word not in known and word not in _STOP and not _inflected(word, known)]
    return len(new) <= most_new


def _inflected(word: str, known: set[str]) -> bool:
    stem = 1 if "가" <= word[0] <= "힣" and len(word) <= 3 else 2
    return len(word) > 2 and any(each[:stem] == word[:stem] and abs(len(each) - len(word)) <= 3 for each in known)


def _bare(text: str) -> str:
    """A text in lower case without quotation marks around it. All other punctuation counts, since
    the task may be about it."""
    return " ".join(text.lower().split()).strip("\"'“”‘’ ")


def _lines(text: str) -> int:
    return len([line for line in text.split("\n") if line.strip()])


def _repeats_input(exchange: Exchange, answer: str, task: str, input_text: str) -> bool:
    if _bare(answer) != _bare(input_text) or _lines(answer) != _lines(input_text):
        return False
    if answer.strip() == input_text.strip() and _MUST_CHANGE.search(task) and not _IF_NEEDED.search(task):
        return True
    if len(plain(input_text)) < LEAST_CHARS or _IF_NEEDED.search(task):
        return False
    if input_text.strip().endswith("?") and not re.search(
        r"translat|rewrit|rephras|paraphras|correct|번역|고쳐|바꿔", task, re.IGNORECASE
    ):
        return True
    if _TRANSLATES.search(task) or (_MAKES_ANOTHER.search(task) and len(input_text) >= LONG_GIVEN):
        return True
    if GIVES_BACK.search(task):
        return False
    return not (is_code(answer) and re.search(r"\bvalid|\bcheck|\bformat", task, re.IGNORECASE))
