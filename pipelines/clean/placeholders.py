"""Placeholders that an answer leaves although the question does not ask for them: [Your Name], [날짜
입력], lorem ipsum."""

import re

from pipelines.clean.exchange import Exchange
from pipelines.clean.prose import FENCED, INLINE, is_code

_NOUN = (
    r"name|names|surname|address|phone|telephone|e-?mail|mail|date|dates|title|number|company|organi[sz]ation|"
    r"business|firm|"
    r"brand|product|service|hotel|restaurant|school|university|college|department|position|job|role|recipient|sender|"
    r"manager|"
    r"supervisor|author|city|state|country|town|location|venue|place|street|zip|website|url|link|amount|price|"
    r"year|month|time|age|skill|industry|field|event|topic|birthplace|photo|picture|image|signature|contact|customer|"
    r"client|"
    r"employee|team|project|course|deadline|order|invoice|account|budget|duration|hours|institution|degree|hobby|"
    r"character|bride|groom|sister|brother|mother|father|mom|dad|husband|wife|friend|boss|coach|colleague|couple|partner|"
    r"neighbou?r|answer|value|keyword|cause|reason|argument|benefit|feature|example|fact|detail|subject|goal|challenge|item|adjective|noun|verb"
)
_HOLE = re.compile(
    r"(?:\b(?:your|insert|enter|fill in|specify|describe|provide|include|attach|type|write)\b|^add\b"
    r"|\b(?:goes|go|comes) here$"
    rf"|^(?:the |a |an |my |our |their |his |her |\w+(?:'s|’s) |\w+ ){{0,3}}(?:{_NOUN})s?(?: (?:here|of [\w' ]+|\d|"
    rf"[a-z]))?(?: (?:and|or|/) [\w' ]+)?$"
    r"|^(?:he|she|his|her|they|him)/\w|^(?-i:X{1,4})$|^\?{2,}$|^tbd$|^(?:state|city|date|name)[,/ ])",
    re.IGNORECASE,
)
_NO_HOLE = re.compile(
    r"^(?:for|in|of|to|and|or|with|that|which|is|was|were|has|had|at|on|by|as|from|who|he|she|it|they)\b|\bnotes?\b|"
    r"^sic$|^(?:applause|laugh|pause|music|silence|sigh)|^ref\b|^citation(?!.*\binsert\b)",
    re.IGNORECASE,
)
_KOREAN = (
    "이름|성함|성명|회사명|상호|날짜|일자|일시|제목|저자|작가|주소|연락처|전화번호|번호|가격|금액|학번|학교|학과|"
    "부서|직책|직위|호텔|"
    "상품명|제품명|서비스명|브랜드|시간|장소|담당자|고객명|점수|숫자|인원|호수|동호수|학생|(?:지역|학교|업체|품|"
    "기관|단체|행사|"
    "과목|부서|도시|"
    "국가)명|전공|직무|회사|업체|분야|경력|제품|상품|서비스|행사|"
    "가게|매장|기관|수신자|발신자|받는 사람|보내는 사람|링크|사진|이메일|"
    "나이|지역|도시|팀명"
)
_KOREAN_HOLE = re.compile(
    rf"(?:^(?:[가-힣]+(?:의|님)? ?){{0,2}}(?:{_KOREAN})(?: ?(?:입력|기재|기입|삽입|작성))?$"
    r"|입력|기입|기재|삽입|여기에|이곳에|추가하세요|추가해 ?주세요|작성하세요|작성해 ?주세요|넣어 ?주세요|넣으세요)"
)
# In the description of a menu, a bracket is something to click.
_MENU = re.compile(
    r"\[[^\[\]\n]{1,30}\](?:\s*[>→▶–-]\s*\[[^\[\]\n]{1,30}\])+|"
    r"\[[^\[\]\n]{1,30}\](?=\s*(?:탭|메뉴|버튼|아이콘|[을를] (?:누|클릭|선택|고르)|(?:tab|menu|button|icon|key)\b))"
)
_SQUARE = re.compile(r"(?<![\w\])])\[([^\[\]\n]{1,60})\](?!\()|(?<=[가-힣\w])\[([^\[\]\n]{1,60})\](?=[가-힣])")
_BOLD_SQUARE = re.compile(r"【([^【】\n]{1,30})】")
_ANGLE = re.compile(
    rf"<((?:your|insert|enter|add|describe|fill in|name of|date|company)\b[^<>\n]{{0,50}}"
    rf"|(?:[\w'’]+ ){{0,3}}(?:{_NOUN})|[가-힣 ]{{2,30}})>",
    re.IGNORECASE,
)
# Words that are tags, or look like tags.
_MARKUP = frozenset(("title", "address", "time", "link", "picture", "image", "month", "date", "photo"))
_ROUND = re.compile(
    r"\(((?:your|insert|enter|fill in|add)\b[^()\n]{0,40}(?: here)?|(?:company |your |full |first |last |client |"
    r"customer )?name(?: here)?|"
    r"[\w' ]{1,30} here)\)"
    rf"|(?<![가-힣\w])\(((?:[가-힣]+ )?(?:{_KOREAN})|[^()\n]{{0,30}}(?:입력|삽입|기입|추가)(?:하세요|해 ?주세요|"
    rf"하십시오)?)\)",
    re.IGNORECASE,
)
_SURE_ROUND = re.compile(
    r"^(?:insert|enter|fill in|your (?:full |first |last )?(?:name|address|phone|e-?mail|title|company)|.*\bhere$|"
    r".*name$)",
    re.IGNORECASE,
)
_LOREM = re.compile(r"\blorem ipsum dolor\b|\blorem ipsum\b[^.]{0,40}\bamet\b", re.IGNORECASE)
_BLANK = re.compile(r"(?<!_)_{3,}(?!_)")
# Circles in place of a word. After a family name, they hide a given name on purpose.
_CIRCLES = re.compile(
    r"(?=[○◯〇OＯX])(?:(?<![김이박최정강조윤장임한오서신권황안송류홍전고문양손배백허유남심노하곽성차주우구민진지엄채원천방공현함변염여추도소석선설마길연위표명기반왕금옥육인맹제모탁국어은편용])"
    r"(?<![김이박최정강조윤장임한오서신권황안송류홍] )(?:[○◯〇]{2,}|(?<![A-Za-z])[OＯ]{2,4}(?= ?(?:님|씨|선생|고객|"
    r"회사|팀|대학|고등|중학|초등|드림|올림|교수|"
    r"과장|부장|대표|시|군|구|동)(?![A-Za-z])))|(?<![A-Za-z])X{2,}(?=[년월일시원])|\bX{3}[-. ]X{3,4}[-. ]X{4}\b)"
)
_WRITTEN_OUT = re.compile(
    r"\[ {1,8}\](?=[가-힣])|(?<![\w/#])TODO:|(?<!_)__ ?(?=[년월일시분원])|_{3,}(?=\()|"
    # A bracketed word with a particle is a placeholder, unless it is a reference such as [그림 1].
    r"\[(?!(?:그림|표|사진|예시?|참고|주|식|각주|보기|문제|자료|단계|부록)[ \d\]])"
    r"[가-힣]{1,8}(?: [가-힣]{1,8})?\](?=(?:의|을|를|이|가|은|는|"
    r"에|에서|와|과|께|"
    r"님|한|로|으로|부터|까지)(?![가-힣])|한 )|"
    r"\b(?:INSERT|YOUR) (?:[A-Z]+ ){0,3}(?:NAME|CITY|DATE|TITLE|COMPANY|HERE|PLACE|NUMBER)\b|«\w*_\w*»|"
    r"\$X{1,3}\.X{2}\b|\$X{2,}\b"
    r"|\bXX(?= ?(?:January|February|March|April|May|June|July|August|September|October|November|December|inches|cm|"
    r"mm|kg|ml|%|hours|minutes|x\b))|[OＯ]{2,}(?=ml|kg|원|,[OＯ]{3})"
    r"|\((?i:(?:city|state|month|day|year|date|town|country)[, /]*){2,4}\)",
)
_CURLY = re.compile(rf"(?<![{{$\w])\{{ ?(?:\w+[_ ])*(?:{_NOUN}|{_KOREAN}) ?\}}(?!\}})", re.IGNORECASE)
_FILLER_LINE = re.compile(
    r"^\W*(?:여기에|이곳에) [^\n.]{0,20}(?:입력|작성|기입|삽입|추가)(?:하세요|해 ?주세요|하십시오)\W*$"
    r"|^\W*(?:insert|add|enter|write|put) (?:your |the )?[\w ]{1,25} here\W*$",
    re.IGNORECASE | re.MULTILINE,
)
# Questions that ask for placeholders.
_ASKED_FOR = re.compile(
    r"\btemplates?\b|\b(?:a|the|this|my|first|rough|short) draft\b|\bforms?\b|\bfill[- ]?in\b|\bfill (?:it|them|in|"
    r"out)\b|\bplaceholders?\b|\bblanks?\b|"
    r"\bmad ?libs?\b|\bskeleton\b|"
    r"\bboilerplate\b|\bsheet\b|\bgap[- ]?fill|\bafterwards?\b|\bI(?:'|’)ll (?:add|fill|put|insert)\b|\bprintable|"
    r"\bworksheet|\bquiz|\bcloze\b|\bquestionnaire|\bsurvey|"
    r"\bchecklist|\bsample (?:letter|e-?mail|"
    r"message|contract)|"
    r"\bgeneric\b|\bcontract\b|\bagreement\b|\binvoice\b|\bmock-?up|\bfiller\b|\bdummy\b|\bvariables?\b|\bwireframe|"
    r"\blorem\b|\bmerge fields?|"
    r"\breus(?:e|able)\b|\bleave (?:\w+ ){0,2}(?:gaps?|spaces?|room)\b|"
    r"\bformat\b|\bbrackets?\b|\btokens?\b|템플릿|양식|서식|빈칸|빈 칸|초안|틀을|틀로|틀 |채워 ?(?:넣|쓸)|비워|"
    r"발음|읽[어는나을]|자리 ?표시|예시 문구|(?<!연)설문|퀴즈|문제를|"
    r"계약서|견적서|청구서|이력서 틀|로렘|입숨",
    re.IGNORECASE,
)
_GIVES_THEM_BACK = re.compile(r"\btranslat|\brewrit|\brephras|\bparaphras|번역|옮겨|바꿔|바꾸|고쳐", re.IGNORECASE)
MANY_BLANKS = 2


def _holes_of_answer(exchange: Exchange) -> list[str]:
    """The placeholders in an answer, in brackets of every kind, ordered by kind."""
    texts = holes(exchange.answer_prose)
    if "<" in exchange.answer:
        bare = INLINE.sub(" ", FENCED.sub(" ", exchange.answer))
        texts += [
            match[0] for match in _ANGLE.finditer(bare) if _is_for_readers(match[1]) and f"</{match[1]}>" not in bare
        ]
    # A line with several braces counts as code, so `answer_prose` lacks it.
    if "{" in exchange.answer:
        curly = _CURLY.finditer(FENCED.sub(" ", exchange.answer))
        texts += [match[0] for match in curly if re.search("[가-힣]", match[0]) and match[0] not in texts]
    return texts


def judge(exchange: Exchange, *, allowed: int) -> str | None:
    """The first placeholder, if the answer has more than `allowed` that the question does not ask
    for; None otherwise."""
    # Most answers end here: they have no placeholder, the question asks for some, or they are code.
    if not (holes(exchange.answer) or _ANGLE.search(exchange.answer)):
        return None
    if _ASKED_FOR.search(exchange.question) or (
        exchange.is_code and is_code(_CURLY.sub(" ", _ANGLE.sub(" ", exchange.answer)))
    ):
        return None

    # Placeholders that the question contains may come back. A translation may hold the same ones in
    # another language.
    answer_holes = _holes_of_answer(exchange)
    question_holes = holes(exchange.context) + [match[0] for match in _SQUARE.finditer(exchange.context)]
    if question_holes:
        known = set(map(_bare, question_holes))
        answer_holes = [hole for hole in answer_holes if _bare(hole) not in known]
        if len(set(answer_holes)) <= len(known) and _GIVES_THEM_BACK.search(exchange.question):
            return None
    if len(answer_holes) > allowed:
        return f"{len(answer_holes)} places to be filled in, the first is {answer_holes[0]}"
    return None


def holes(text: str) -> list[str]:
    """Every placeholder in a text, verbatim."""
    text = _MENU.sub(" ", text) if "[" in text else text
    texts = [match[0] for match in _SQUARE.finditer(text) if _is_hole(match[1] or match[2])]
    texts += [match[0] for match in _ROUND.finditer(text) if match[2] or _SURE_ROUND.search(match[1])]
    texts += [match[0] for match in _BOLD_SQUARE.finditer(text) if _is_hole(match[1])]
    texts += [
        match[0]
        for pattern in (_WRITTEN_OUT, _LOREM, _CIRCLES, _CURLY, _FILLER_LINE)
        for match in pattern.finditer(text)
    ]
    blanks = _BLANK.findall(text)
    return texts + (blanks if len(blanks) >= MANY_BLANKS else [])


def _is_hole(inside: str) -> bool:
    inside = inside.strip()
    if _NO_HOLE.search(inside):
        return False
    return bool(_HOLE.search(inside) or _KOREAN_HOLE.search(inside))


def _is_for_readers(inside: str) -> bool:
    """Whether text in angle brackets is neither a tag nor a command's argument, which is one word
    or joined words."""
    return inside.lower() not in _MARKUP and not re.search(r"\w[-_/.]\w", inside)


def _bare(hole: str) -> str:
    return re.sub(r"[\W_]+", "", hole).lower() or hole[:3]
