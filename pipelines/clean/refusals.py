"""Refusals: answers that say that they cannot or will not help, and then end.

These are no refusals:

- an answer that says so and then does the work,
- a refusal or an apology that the question asks for,
- such words in code or quotation marks.
"""

import re

from pipelines.clean.exchange import Exchange
from pipelines.clean.prose import sentences, unquoted

_CANNOT = (
    r"(?:can ?not|can(?:'|’)t|could ?n(?:o|'|’)t|am (?:not able|unable)|(?:'|’)m (?:not able|unable)|won(?:'|’)t|"
    r"will not|would ?n(?:'|’)t be able|"
    r"(?:do not|don(?:'|’)t|does not|doesn(?:'|’)t) (?:actually |currently |really |yet )?"
    r"(?:have|possess|know|feel|experience|hold|support|understand|see|eat|sleep)|have no\b|lack\b|"
    r"am not (?:in a position|allowed|permitted|programmed|designed|capable|sure|comfortable|familiar)|"
    r"(?:'|’)m not (?:in a position|allowed|permitted|programmed|designed|capable|sure|comfortable|familiar))"
)
_WORK = (
    r"(?:help(?! (?:but\b|\w+ing\b|myself|feeling|thinking))|assist|comply|fulfil?l?|provide|answer|complete|engage|"
    r"do (?:that|this|it|so)\b|process|generate|create|write|produce|open|"
    r"access|browse|search|view|see|hear|watch|read|predict|give|offer|share|discuss|support|tell|say|perform|"
    r"continue|respond|"
    r"recommend|suggest|make|play|set|send|look up|translate|summari[sz]e|determine|identify|accept|talk|speak|run|"
    r"execute|order|book|"
    r"be able to)"
)
_SELF = (
    r"an? (?:AI|A\.I\.|artificial intelligence|(?:AI |large |text-based )*(?:language )?model|"
    r"(?:AI |virtual |digital |text-based |automated |language |open(?:-source)? )?assistant|text-based (?:AI|program)|chat ?bot|"
    r"machine|computer program|bot)\b"
)
STRONG = re.compile(
    "|".join(
        (
            rf"\b(?:as|being|since I am|since I(?:'|’)m|because I am|because I(?:'|’)m|I am|I(?:'|’)m)(?: just| only|"
            rf" merely)? {_SELF}"
            rf"[^.!?\n]{{0,80}}?(?:\bI |, |and |so )?(?:{_CANNOT}|(?:cannot|can(?:'|’)t|unable|not able|do not|"
            rf"don(?:'|’)t|no (?:personal|access|feelings|opinions)))",
            rf"\bI ?{_CANNOT} (?:directly |currently |really |fully |in good conscience )?{_WORK}",
            r"\bI(?:'|’)?(?:m| am) (?:unable|not (?:able|permitted|allowed|programmed|in a position)) to\b",
            r"\A\W*(?:sorry,? (?:but )?)?(?:can(?:'|’)t|cannot|can ?not|won(?:'|’)t|unable to) (?:help|do|assist|"
            r"say|answer|provide)\b",
            r"(?:\bnot|n(?:'|’)t) something (?:that )?I(?:'|’)?(?:d|m| am| would| can| feel)\b",
            r"\b(?:content|response|request|answer|text|prompt) (?:could not|cannot|can(?:'|’)t|was not able to) be "
            r"(?:generated|processed|fulfilled|completed|provided|shown|displayed)\b|\bviolat\w+ (?:our|the|my) [\w ]{0,20}"
            r"(?:polic|guideline|terms)",
            r"\bI (?:do not|don(?:'|’)t) have (?:[\w-]+,? ){0,2}(?:experiences?|memor\w+|friends|family|feelings|coworkers)\b",
            r"\bno (?:response|answer|reply|output) (?:will|can|could) be (?:generated|given|provided|produced)\b",
            r"\bI wouldn(?:'|’)t know\b|\bI (?:strive|aim|try|have|prefer) to (?:remain|stay|be) (?:neutral|"
            r"impartial)\b|\bdo your own (?:homework|work)\b",
            r"\A\W*(?:\w+,? ){0,3}I(?: really| honestly)? have no idea\b",
            r"\A\W*(?:\w+,? ){0,2}I do(?: not|n(?:'|’)t) know (?:that|this|the answer|about|it|what)\b",
            r"\bI(?:'|’)?(?:m| am) not comfortable \w+ing\b",
            r"\bI only (?:work|deal) with (?:text|words)\b|\b(?:not|n(?:'|’)t) possible for me\b|\btext-only\b|"
            r"\bI do(?: not|n(?:'|’)t) feel comfortable\b",
            r"\bI (?:will not|won(?:'|’)t) be \w+ing\b|\bI(?:'|’)m not able to take on\b",
            r"\bwe (?:can ?not|can(?:'|’)t|are unable to) (?:complete|help with|assist|comply|fulfil?l?|"
            r"process) (?:this|that|your|the)\b",
            r"\bgo(?:es)? against (?:my|our)\b|\bI (?:do not|don(?:'|’)t) (?:generate|create|write|produce|provide|"
            r"discuss|share) (?:content|such|that|this)\b",
            r"\b(?:beyond|outside|exceeds?) (?:of )?(?:my|what I(?:'|’)?(?:m| can| am))\b",
            r"\bI (?:must|have to|need to|will have to|would|am going to|(?:'|’)?ll have to) (?:respectfully |"
            r"politely |kindly )?(?:decline|refuse|refrain|pass)\b",
            r"\bI(?:'|’)d (?:rather|prefer) not\b|\bI would (?:rather|prefer) not\b|\bI (?:refuse|decline) to\b",
            r"\bit (?:(?:is|would be|(?:'|’)s)(?: not|n(?:'|’)t)|would(?: not|n(?:'|’)t) be) (?:appropriate|"
            r"possible for me|ethical|"
            r"right) (?:for me )?to\b",
            r"\bit (?:is|would be|(?:'|’)s) (?:inappropriate|irresponsible|unethical|impossible for me|against my)\b",
            r"\bI (?:do not|don(?:'|’)t) have (?:the (?:ability|capability|capacity|means|option|tools|permission)|"
            r"access|enough (?:information|context|data)|"
            r"any (?:information|access|personal|memory|knowledge)|real-?time|personal|feelings|emotions|opinions|"
            r"preferences|a (?:physical|body|favou?rite))",
            r"\b(?:my|our) (?:training data|training|knowledge|data|programming|capabilit\w+|guidelines|"
            r"knowledge cut-?off)\b[^.!?\n]{0,50}"
            r"(?:only|does(?: not|n(?:'|’)t)|not|prevent|limited|until|up to|ends|stops)",
            r"\bI(?:'|’)m (?:still learning|sorry, but I (?:can(?:'|’)t|cannot))|\bI have no (?:memory|access|way|"
            r"knowledge|information|opinion|personal)\b",
            r"\b(?:that|this) (?:is not|isn(?:'|’)t) something (?:that )?I(?:'|’)?(?:m| can| am)\b",
            r"\bI(?:'|’)?m? ?(?:am )?not an? [^.!?\n]{0,40}?(?:and )?(?:therefore|so|thus)? ?(?:I )?(?:can(?:'|’)t|"
            r"cannot|can not)\b",
            r"\A\W*no comment\W*\Z|\A\W*(?:I (?:do not|don(?:'|’)t) know|I have no idea|not possible|pass|I(?:'|"
            r"’)m not sure)\W*\Z",
            r"\b(?:please )?try again later\b",
            r"\bI regret to inform you that I\b|\bI(?:'|’)m afraid (?:that )?I (?:can|do|don|am|won)",
        )
    ),
    re.IGNORECASE,
)
APOLOGY = re.compile(
    r"\A\W*(?:I(?:'|’)?(?: a)?m (?:very |so |really |truly )?sorry|sorry\b|my apologies|apologies|"
    r"I (?:sincerely )?apologi[sz]e|unfortunately|regrettably|I regret)",
    re.IGNORECASE,
)
_APOLOGY_AND_NOT = re.compile(
    rf"(?<!we )(?<!We )(?:I |I(?:'|’)m |but |is |are |there ){{0,2}}(?:{_CANNOT}|can(?:'|’)t|cannot|unable|"
    rf"not (?:able|possible|"
    rf"available|enough|clear|provided|sure|understand)|"
    r"(?:did|do|does|has|have|is|are|was|were) ?n(?:o|'|’)t)",
    re.IGNORECASE,
)
_NOT = r"(?:없|어렵|어려울|않|못|불가|곤란|힘듭|힘들)"
_KOREAN_SELF = (
    r"(?:(?<![가-힣])(?:저는|저도|저로서는|저로선|저에게는|제게는|제가|나는|내가)(?![가-힣])|(?:AI|인공 ?지능|"
    r"언어 ?모델|챗봇)(?:이|으로서|로서|이므로|이기|이라|입니다|이어서|라서|라|로|이에요|인)?)"
)
_NOT_GIVEN = re.compile(
    r"\b(?:no|not|n(?:'|’)t|need to|missing)\b[^.!?\n]{0,60}\b(?:provided?|given|specif(?:y|"
    r"ied)|included?|enough|attached|clear)\b",
    re.IGNORECASE,
)
# Korean refusals: the answerer declines a service in honorific language, or speaks of itself.
_KOREAN_SAYINGS = (
    rf"(?:죄송|미안|아쉽|유감|안타깝|송구)[^.!?\n]{{0,60}}(?:수 ?(?:가|는|도)? ?{_NOT}|어렵|불가능|못|않겠|"
    rf"사양|힘들|없어|아니[야에])",
    r"(?:도와|도움을|답변|답|제공|알려|말씀|추천|깨워|요약|대답|설명|작성|번역|확인|안내|조언|공유|소개|"
    r"만들어|보여|찾아|들려)[^.!?\n]{0,12}(?:드릴|드리기|줄) ?"
    r"(?:수 ?(?:가|는|도)? ?없|어렵|힘듭|곤란|불가|엔|에는)",
    r"(?:답변|대답|응답|제공|접근|접속|열람|조회|실행|수행|처리|지원|요약|작성|번역|검색)(?:할|될|해 줄|"
    r"해드릴|하실)? ?(?:수 ?(?:가|는|도)? ?없|이? ?불가능|"
    r"안 ?됩니다|권한이 없)",
    r"(?:열어|들어|읽어|찾아) ?(?:볼|드릴) 수 ?(?:가|는)? ?없",
    rf"{_KOREAN_SELF}[^.!?\n]{{0,70}}(?:수 ?(?:가|는|도)? ?{_NOT}|(?:지|하지) (?:않|못)|(?:기능|능력|권한|"
    rf"정보|기억|감정|의견|취향|선호|"
    rf"경험|데이터)(?:이|도|은|는|가) ?없|알지 못)",
    rf"(?:학습|훈련)(?:한|된|받은)? ?(?:데이터|자료)[^.!?\n]{{0,60}}{_NOT}",
    r"(?:해 ?드리|드리)기(?:가|는|엔|에는)? ?(?:어렵|어려울|곤란|힘듭|힘들)|드리지 (?:않겠|못)|(?:말씀드리|"
    r"말하|답하)지 않겠|정중히 (?:사양|거절)",
    r"(?:글|본문|문장|텍스트|내용|파일|입력)(?:이|가|은|을|를)? ?(?:제공|입력|첨부|제시)(?:되|하)지 않|"
    r"(?:안내|제공|답변)하지 않|(?:정책|지침)에 (?:위배|어긋)",
    r"(?:그려|불러|틀어) ?드릴 (?:수|순) ?(?:는|가)? ?없|대답하기 (?:어려운|곤란한)",
    r"(?:작성|제공|답변|안내|생성|이용)(?:이|은|은|가)? ?(?:제한|금지)|(?:안내|제공|답변|말씀)(?:해|"
    r"을)? ?드리지 않",
    r"(?:할|해 줄) 수 있는 일이 아니|(?:응할|들어줄|들어드릴) 수 ?(?:가|는)? ?없|알려 ?(?:드릴|"
    r"줄) 수 ?(?:가|는)? ?없|(?:답변|대답)을? 거부",
    r"\A\W*(?:잘 ?)?모르겠(?:습니다)\W*\Z|\A\W*(?:그건|그것은|이건|그런 건)? ?(?:좀 |조금 )?(?:곤란|힘들|"
    r"어려)[가-힣 ]{1,8}\W*\Z",
    r"(?:요청하신|해당|이번|본) ?[^.!?\n]{0,20}(?:작업|요청|질문|내용)[^.!?\n]{0,40}(?:수 ?(?:가|는)? ?없|"
    r"지 않|어렵|제한|불가)",
    r"(?:정보|자료|데이터)(?:을|를|는)? ?(?:가지고|갖고|보유하고) 있지 않|(?:생성|번역|요약|작성|검색|"
    r"실행) ?기능(?:이|은|을)? ?(?:지원|제공)(?:되|하)지 않",
    r"제 (?:능력|역량|권한) ?밖|능력 밖의|(?:써|작성해|만들어|대신해|알려|도와|답변|추천) ?드리지 (?:않|"
    r"못)|(?:답변|추천|조언|설명|안내)(?:이|을|를|은)? ?(?:제한|삼가|드리기(?:가)? ?(?:어렵|곤란))",
    r"아직 (?:배우|익히|학습하)지 못|(?:드리는|하는|해 주는) (?:일|것|건)(?:은|는)? ?(?:하지 않|삼가|어렵|어려|힘들|곤란)",
    r"\A\W*내가 왜|(?:네가|니가|직접) (?:직접 )?(?:써|해|찾아봐|하세요|쓰세요|찾아보세요)\W*\Z",
)
KOREAN = re.compile("|".join(_KOREAN_SAYINGS))


def _in_sql(pattern: re.Pattern[str] | str) -> str:
    """The pattern for RE2, which has no lookaround and is slow with counted repetition. It matches
    slightly more."""
    text = pattern if isinstance(pattern, str) else f"(?i:{pattern.pattern})"
    bare = re.sub(r"\(\?<?!(?:[^()]|\([^()]*\))*\)", "", text).replace(r"\Z", r"\z")
    return re.sub(r"\{0,\d\d\}\??", "*", bare)


# Several patterns, since RE2 is many times slower with one pattern whose states do not fit into its
# cache.
_AT_A_TIME = 8
IN_SQL = (
    _in_sql(STRONG),
    _in_sql(APOLOGY),
    *(_in_sql("|".join(_KOREAN_SAYINGS[i : i + _AT_A_TIME])) for i in range(0, len(_KOREAN_SAYINGS), _AT_A_TIME)),
)
# Prompts that ask for a text with such words. In the answer they are not the answerer's own.
WRITTEN = re.compile(
    r"\bapolog|\bexcuse|\bdeclin|\brefus|\breject|\bturn(?:s|ed|ing)? down\b|\bsorry\b|\bcan(?:no|'|’)t\b|\bunable\b|"
    r"\bsay no\b|\breply\b|\brespond to\b|"
    r"\bresponse to\b|\bletter\b|\be-?mail\b|\bmessage\b|\btext message\b|\bnotice\b|\bdialog|\bconversation\b|"
    r"\bscene\b|\bhaiku\b|"
    r"\bscript\b|\b404\b|\berror\b|\btext for\b|\bbanner\b|\bnotification\b|\bstatus page|\brole.?play|\bpretend\b|"
    r"\bact as\b|\bcustomer\b|\bchat ?bot|\brobot|\bfill in\b|"
    r"\bwhat would you say|\bvoicemail|\bauto.?reply|\bmonolog|"
    r"사과|거절|핑계|변명|미안|죄송|답장|답변을 ?(?:써|작성)|편지|메일|문자|메시지|안내 ?문|문구|오류|공지|대화|"
    r"대사|장면|예문|"
    r"동화|소설|짧은 글|연기|역할|로봇|챗봇|자기소개",
    re.IGNORECASE,
)
# Tasks on a given text, whose words may come back.
_GIVEN = re.compile(
    r"\btranslat|\bmake (?:this|it)\b|\bpolite|\brewrit|\brephras|\bparaphras|\bsummar|\bsentiment|\bclassif|"
    r"\bquote|\bsentences?\b|\bphrase|"
    r"\bcomplete the\b|\bedit\b|\bcorrect\b|\bsimplif|"
    r"감정|분류|번역|옮기|옮겨|바꿔|고쳐|요약|문장|인용",
    re.IGNORECASE,
)
_GIVEN_WORDS = re.compile(
    r"\bsorry\b|\bapolog|\bcan ?not\b|\bcan(?:'|’)t\b|\bunable\b|\bnot able\b|\bwon(?:'|’)t\b|\bdo(?: not|n(?:'|"
    r"’)t)\b|\bno\b|\bAI\b|"
    r"\blanguage model|\bcomment\b|\brefus|\bdeclin|"
    r"죄송|미안|인공지능|언어 모델|없|않|못|entschuldig|désol|lo siento|perd[óo]n",
    re.IGNORECASE,
)
_STORY = re.compile(
    r"\bstor(?:y|ies)\b|\bpoem|\bfiction|\bnovel\b|\bjoke|\bsong|\blyric|이야기|시를|소설|동화", re.IGNORECASE
)
_MACHINE = re.compile(
    rf"\b(?:as|being|I am|I(?:'|’)m)(?: just| only)? {_SELF}|AI 언어|(?:저는|나는|제가) ?(?:[가-힣]+ ){{0,3}}(?:AI|"
    rf"인공지능|"
    rf"언어 ?모델|챗봇)|인공지능 언어|"
    rf"\bas a language model",
    re.IGNORECASE,
)
_HELP = re.compile(
    rf"\bI {_CANNOT} (?:help(?! but)|assist|comply|fulfil?l?|complete|do) (?:you |with )?(?:that|this|it|your|the)\b|"
    # No story or letter says this: the answerer speaks of the text that it should write.
    rf"\bI ?(?:{_CANNOT}|do(?: not|n(?:'|’)t) feel comfortable|(?:'|’)m not comfortable)(?: be)? ?(?:able to |to )?"
    r"(?:writ|creat|generat|provid|produc|shar|reproduc)\w+ (?:assistance|help|support|content|material|anything|"
    r"an? (?:[\w-]+ ){0,2}(?:poem|stor|essay|joke|song|"
    r"letter|text|message|email|script|scene|note|review)|content (?:about|that|on|of)\b|"
    r"(?:this|that|those|these|such|the) ?(?:content|request|"
    r"lyrics|text|poem|story|joke|song|letter|message|script|scene|essay|note|review)?s?\b)|\bprotected by copyright|"
    r"\bviolat\w+ (?:our|the|my) [\w ]{0,20}(?:polic|guideline)|"
    rf"(?:\bnot|n(?:'|’)t) something I(?:'|’)?(?:d|m| would| am)\b|"
    rf"\bI(?:'|’)?(?:m| am) unable to (?:do (?:this|that|it)|help|assist|comply|fulfil|complete)|\b(?:this|that|"
    rf"it) is (?:beyond|outside) (?:my|what I)|\bit is not appropriate to (?:write|create|make|generate)|"
    r"\bagainst my (?:guidelines|programming|policy|policies)|\bI(?:'|’)d rather not (?:write|answer|do|create|"
    r"say)|\bI would rather not (?:write|answer|do)",
    re.IGNORECASE,
)
_KOREAN_HELP = re.compile(
    r"(?:작성|생성|답변|안내|제공)(?:이|은|을|를|해)? ?(?:제한|금지|드리지 않|드릴 수 없|드리기 어렵|할 수 없)|"
    r"AI에 불과|그건 (?:좀 )?(?:곤란|어려|힘들)|(?:써|작성해|만들어|대신) ?드리지 않|능력 밖|배우지 못|내가 왜|(?:요청|"
    r"작업)[^.!?\n]{0,20}(?:수행|응|"
    r"답변)[^.!?\n]{0,10}없|(?:소설|글|시)을? ?쓸 수 없"
)
_LETTER = re.compile(r"문자|메시지|답장|공지|문구|거절|사과|안내 ?문|고객|손님|예문")
_NO = re.compile(
    r"\W*(?:no|nope|no way|never|아니요|아니|싫어요?|싫습니다|안 ?돼요?|안 ?됩니다|안 해|안 할래요?)\W*\Z",
    re.IGNORECASE,
)
_ORDER = re.compile(
    r"\A\W*(?:please )?(?:give|write|list|tell|name|create|generate|compose|explain|describe|make|suggest|provide|"
    r"draft|design|translate|summari[sz]e|help|show|plan|come up)\b"
    r"|(?:줘|주세요|주십시오|세요|시오|써라|봐)\W*\Z",
    re.IGNORECASE,
)
_SPEAKS_OF_IT = re.compile(
    r"(?i:\bare you (?:able|a |an |human|real|conscious)|\bdo you (?:feel|sleep|eat|dream|"
    r"remember|get tired))|(?<![A-Za-z])AI(?![A-Za-z])|\blanguage model|\bchat ?bot|\brobot|인공 ?지능|언어 ?모델|챗봇|로봇"
)
_FILLER = re.compile(
    r"\?\s*\Z|\bis there (?:anything|something)|\blet me know|\bfeel free|\bI(?:'|’)?d? ?(?:would|will|"
    r"ll)? ?be (?:happy|glad)|\bplease\b|\bif you (?:have|can|could|would|need|"
    r"provide|want|copy|let|give|share|tell|are)|\bconsult|\bI (?:suggest|recommend|encourage|advise|hope|"
    r"would suggest|would encourage)|\bmay want to\b|\bconsider\b|"
    r"\bthank you\b|\byou (?:could|can|should|may|might) (?:try|ask|check|use|want|contact|consult|look|seek|visit|"
    r"find)|\b(?:illegal|unethical|harmful|dangerous|privacy|"
    r"inappropriate|against the law|policy|terms|important to|deserve|ethical|violence|well-being|legal|licensed|"
    r"respect|sensitive|responsib)|\bmy (?:purpose|"
    r"goal|role|function|training|responses|abilities|data)\b|"
    r"\bI(?:'|’)?m? ?(?:am )?(?:designed|programmed|trained|here to|still learning|only able|a (?:text|language))|"
    r"\btry (?:again|asking)|"
    r"\b(?:however, |but )?I can (?:only |also |certainly |still )?(?:help|assist|provide you|suggest|calculate|"
    r"offer|recommend|give you|support|convert|generate|create|check|search|get)|"
    r"\bI am able to (?:help|assist|provide|offer)|\b(?:current )?(?:capabilit|functionalit)\w+|"
    r"\bfunctions?\b[^.]{0,40}\b(?:provided|available|limited)|\bexternal tasks?\b|"
    r"\bI do(?: not|n(?:'|’)t) have a function\b|\b(?:best|easiest) way\b|\bthere are (?:many|several|various|some|"
    r"plenty of) (?:other )?(?:online |great |free )*(?:tools|resources|websites|sites|services|apps)|"
    r"\bcheck (?:the|their|with|out)\b|\brefrain\b|\bviolat|\bconsent\b|\bgreat resource|"
    r"이용해|참고|문의|상담|방문|말씀해|확인해|부탁|바랍니다|주세요|주시|좋을 것|권해|양해|궁금|도와드리|존중|불법|"
    r"개인정보|사생활|민감|위험",
    re.IGNORECASE,
)
_GOES_ON = re.compile(
    r"\b(?:but|however|instead|still|nevertheless|that said)\b,? (?:here|I can|you can|a |an |the |some |there|"
    r"generally|in general|based|if|it|many|most|one|let)"
    r"|, but (?!I\b|there is no|this is|if\b|as\b|my\b|this\b|that\b|unfortunately\b|please\b|it(?:'|"
    r"’)?s?\b)[^.!?\n]{35,}|\bhere (?:is|"
    r"are)\b|\bhere(?:'|’)s\b|(?:없지만|않지만|못하지만|어렵지만|다만|대신|(?<!죄송)(?<!미안)하지만)[^.!?\n]{10,}",
    re.IGNORECASE,
)
_DECLINES = re.compile(
    r"\bI(?:(?:'|’)ll| will)? (?:have to|must|need to|will have to|would|(?:'|’)ll have to)? ?(?:\w+ )?(?:decline|"
    r"refuse|refrain|not be (?:able|writing|providing|taking))\b|\bI (?:refuse|decline) to\b|"
    r"\bI (?:can ?not|can(?:'|’)t|won(?:'|’)t|will not|am (?:unable|not able) to) (?:write|provide|help|give|"
    r"recommend|offer|make|take|answer|share|create|do|generate|produce|assist|be (?:writ|provid|creat|shar|help)\w+|"
    r"be able to)\b|\bfor (?:this|these|that) reasons?,? I\b|"
    r"정중히 (?:사양|거절)|(?:드리지|하지|일은 하지) 않겠습니다|양해 ?부탁드립니다|(?:답변|추천|도움)(?:을|은|"
    r"이)? ?드릴 수 없|(?:써|작성해|"
    r"만들어) ?드릴 수 없",
    re.IGNORECASE,
)
# The longest answer that may lead up to a refusal at its end.
DECLINED_CHARS = 700
# An answer that only refuses is hardly longer than this.
SHORT_CHARS = 420
# Characters after a "but" from which the sentence turns to the work.
TURN_CHARS = 40
# Characters of substance beside the refusal from which the answer does the work after all.
REST_CHARS = 100
# The same after an outright refusal, which may be followed by a long explanation.
SERMON_CHARS = 300


def judge(exchange: Exchange, *, head_chars: int) -> str | None:
    """The words of refusal if the answer is one, else None.

    In a long answer, they occur within the first `head_chars` characters or at the end.
    """
    if exchange.is_code:
        return None
    answer = exchange.answer_prose.strip()
    if _NO.match(answer) and not exchange.question.rstrip().endswith(("?", "？")) and _ORDER.search(exchange.question):
        return f"the answer refuses: {answer}"
    words = cue(exchange, answer, head_chars)
    if words is None:
        return None
    if goes_on(answer):
        return None
    return f"the answer refuses: {words[:60]}"


def cue(exchange: Exchange, answer: str, head_chars: int) -> str | None:
    """The words with which the answer refuses; None if there are none or if the question asked for
    them."""
    text = unquoted(answer)
    head = text if len(text) <= SHORT_CHARS else f"{text[:head_chars]}\n{_end(text)}"
    match = _words_of_refusal(head)
    question = exchange.question

    # The words are copied from the question.
    if match is None or (len(match[0]) > 8 and match[0].lower() in question.lower()):
        return None

    # The question is about AI itself: "I do not feel" is an honest answer, "I cannot help" is not.
    if _SPEAKS_OF_IT.search(question):
        return match[0] if _HELP.search(head) else None

    # The question asks for a text that may contain such words: only the answerer's own words count.
    if WRITTEN.search(question) or _STORY.search(question) or _gives_words(question):
        own_words = _own_words(question, head, match)
        return own_words[0] if own_words and not _MACHINE.search(question) and _is_answerers(answer) else None
    return match[0]


def _words_of_refusal(head: str) -> re.Match[str] | None:
    if match := STRONG.search(head) or KOREAN.search(head):
        return match
    if not APOLOGY.search(head):
        return None
    first = " ".join(sentences(head)[:2])
    return _APOLOGY_AND_NOT.search(first) or _NOT_GIVEN.search(first)


def _own_words(question: str, head: str, match: re.Match[str]) -> re.Match[str] | None:
    """Words of refusal that only the answerer itself would say, in an answer that may contain
    others."""
    if own_match := _MACHINE.search(head) or _HELP.search(head):
        return own_match
    if not _LETTER.search(question) and not _gives_words(question) and (own_match := _KOREAN_HELP.search(head)):
        return own_match
    return match if not WRITTEN.search(question) and _is_apology_alone(head) else None


def _gives_words(question: str) -> bool:
    return bool(_GIVEN.search(question) and _GIVEN_WORDS.search(question))


def _is_apology_alone(head: str) -> bool:
    """Whether an answer begins with an apology that refuses and ends soon after, as no song or
    story does."""
    parts = sentences(head)
    return len(parts) <= 3 and bool(APOLOGY.match(parts[0]) and STRONG.search(parts[0]))


def _end(text: str) -> str:
    """The last two sentences of an answer of at most DECLINED_CHARS, if they decline; otherwise
    ""."""
    end = " ".join(sentences(text[-DECLINED_CHARS:])[-2:])
    return end if len(text) <= DECLINED_CHARS and _DECLINES.search(end) else ""


def _is_answerers(answer: str) -> bool:
    """Whether an answer is one voice speaking of itself, not a scene with several."""
    return len(sentences(answer)) <= 6 and not re.match(r"\s*[\"“‘']", answer)


def _ends_declining(sentence: str) -> bool:
    declines = _DECLINES.search(sentence)
    return bool(declines) and not _GOES_ON.search(sentence[declines.end() :])


def goes_on(answer: str) -> bool:
    """Whether an answer that says it cannot then does the work: a list, code, or sentences of
    substance."""
    parts = sentences(answer)
    if len(answer) <= DECLINED_CHARS and any(_ends_declining(part) for part in parts[-2:]):
        return False
    if _holds_a_list(answer):
        return True
    rest = 0
    for sentence in parts:
        if STRONG.search(sentence) or KOREAN.search(sentence) or APOLOGY.search(sentence):
            if _turns_to_the_work(sentence):
                return True
        elif not _FILLER.search(sentence):
            # Korean says the same in half the characters.
            rest += len(sentence) * (2 if re.search("[가-힣]", sentence) else 1)
    declined = _HELP.search(" ".join(parts[:2])) and not _GOES_ON.search(answer)
    return rest > (SERMON_CHARS if declined else REST_CHARS)


def _holds_a_list(answer: str) -> bool:
    return sum(bool(re.match(r"\s*(?:[-*•]|\d{1,2}[.)])\s+\S", line)) for line in answer.split("\n")) >= 2


def _turns_to_the_work(sentence: str) -> bool:
    """Whether a refusing sentence continues, after a "but", with something of substance."""
    after = _GOES_ON.search(sentence)
    rest = sentence[after.start() :] if after else ""
    return len(rest) >= TURN_CHARS and not any(each.search(rest) for each in (_FILLER, STRONG, KOREAN, _NOT_GIVEN))
