"""Whether a question asks for words of another language: it names the language, its people or
country, or asks to translate."""

import re

_TRANSLATION = re.compile(
    r"\btranslat|\bin(?:to)? (?:another|a foreign|any other|both|two|three|several|different|various|"
    r"other) languages?\b|\bhow (?:do|would|can|to) (?:you|i|we|one|people)? ?say\b|\bforeign\b|\blanguages?\b|"
    r"\blorem\b|\bfiller\b|\bin capitals\b|\bconjugat|\bdeclension|\bpronounce|\boriginal\b|\bpinyin|\bkanji|"
    r"\bown spelling|\bhanzi|"
    r"\bhiragana|\bkatakana|\bhaiku in\b|번역|옮겨|옮기|외국어|병음|히라가나|가타카나|현지|원문|로마자|[가-힣]+어로\b",
    re.IGNORECASE,
)
# Questions whose answers may quote a few words of another language, but are not written in it.
_MAY_QUOTE = re.compile(
    r"\bphrases?\b|\bloan ?words?\b|\btongue.?twister|\bmotto\b|\bproverb|한자|사자성어|고사성어|원어|표기|속담",
    re.IGNORECASE,
)
# Language code → the language, its people, its countries and their best-known cities.
_BY_LANGUAGE = {
    "de": r"german|deutsch|austria|swiss|switzerland|berlin|vienna|munich|zurich|hamburg|독일|오스트리아|베를린|"
    r"빈에서|뮌헨|스위스",
    "fr": r"french|france|paris(?:ian)?\b|belgi|quebec|québec|montreal|lyon|marseille|français|프랑스|불어|파리|퀘벡|"
    r"스위스|벨기에",
    "es": r"spanish|spain|mexic|argentin|chile|colombia|peru|cuba|madrid|barcelona|español|castilian|latin america|"
    r"buenos aires|스페인|서반아|멕시코|마드리드|칠레|아르헨티나|페루",
    "pt": r"portug|brazil|lisbon|são paulo|sao paulo|rio de janeiro|포르투갈|브라질|리스본",
    "it": r"ital|rome\b|roman\b|milan|venice|naples|sicil|florence|opera|tempo|musical term|이탈리아|이태리|로마|"
    r"밀라노|베네치아|피렌체|악상|빠르기",
    "nl": r"dutch|netherlands|holland|flemish|amsterdam|네덜란드|암스테르담|화란",
    "la": r"latin|roman\b|botan|medical|anatom|muscle|scientific name|species|bone|plant|라틴|학명|해부",
    "sv": r"swed|stockholm|스웨덴",
    "da": r"danish|denmark|copenhagen|덴마크",
    "no": r"norw|oslo|노르웨이",
    "nb": r"norw|oslo|노르웨이",
    "nn": r"norw|oslo|노르웨이",
    "fi": r"finn|finland|helsinki|핀란드",
    "is": r"iceland|reykjavik|아이슬란드",
    "pl": r"polish|poland|warsaw|krakow|폴란드|바르샤바",
    "cs": r"czech|prague|체코|프라하",
    "sk": r"slovak|슬로바키아",
    "hu": r"hungar|budapest|헝가리|부다페스트",
    "ro": r"romania|bucharest|루마니아",
    "tr": r"turk|türk|istanbul|ankara|튀르키예|터키|이스탄불",
    "vi": r"vietnam|hanoi|saigon|ho chi minh|베트남|월남|하노이|호찌민",
    "id": r"indones|jakarta|bali\b|인도네시아|자카르타|발리",
    "ms": r"malay|kuala lumpur|말레이",
    "jv": r"java|자바",
    "tl": r"tagalog|filipin|philippin|manila|타갈로그|필리핀|마닐라",
    "sw": r"swahili|kenya|tanzania|nairobi|스와힐리|케냐|탄자니아",
    "ca": r"catal|barcelona|카탈루냐",
    "eu": r"basque|바스크",
    "ga": r"irish|gaelic|ireland|dublin|아일랜드|게일",
    "cy": r"welsh|wales|cardiff|웨일스",
    "eo": r"esperanto|에스페란토",
    "hr": r"croat|zagreb|크로아티아",
    "sr": r"serb|belgrade|세르비아",
    "sl": r"sloven|슬로베니아",
    "et": r"eston|tallinn|에스토니아",
    "lv": r"latvia|riga\b|라트비아",
    "lt": r"lithuan|vilnius|리투아니아",
    "mi": r"maori|māori|new zealand|마오리",
    "haw": r"hawai|하와이",
    "zu": r"zulu|줄루",
    "xh": r"xhosa|코사",
    "af": r"afrikaans|south africa|아프리칸스",
    "ht": r"haitian|creole|haiti|아이티",
}
# Script → the same for the languages written in it.
_BY_SCRIPT = {
    "han": r"chinese|china|mandarin|cantonese|hanzi|kanji|japan|taiwan|hong kong|beijing|shanghai|tokyo|kyoto|"
    r"osaka|singapore|taipei|hanja|confuc|tang dynasty|"
    r"중국|한자|일본|대만|홍콩|베이징|북경|상하이|상해|도쿄|동경|교토|오사카|타이베이|만다린|광둥|한문|漢字|"
    r"사자성어|고사|일어|한시|천자문|논어",
    "kana": r"japan|nihongo|tokyo|kyoto|osaka|hiragana|katakana|kanji|haiku|anime|manga|일본|일어|도쿄|동경|교토|"
    r"오사카|히라가나|가타카나|가나|하이쿠",
    "cyrillic": r"russia|ukrain|bulgar|serb|macedon|belarus|kazakh|mongol|cyrillic|moscow|kyiv|kiev|petersburg|"
    r"sofia|slavic|pushkin|tolstoy|dostoevsky|русск|"
    r"러시아|우크라이나|불가리아|키릴|몽골|모스크바|키이우|노어|카자흐",
    "arabic": r"arab|egypt|cairo|moroc|tunis|saudi|dubai|emirat|iraq|iran|persia|farsi|urdu|pakistan|quran|koran|"
    r"islam|lebanon|beirut|syria|jordan|islamabad|karachi|tehran|"
    r"아랍|이집트|카이로|모로코|두바이|이란|페르시아|우르두|파키스탄|코란|이슬람",
    "hebrew": r"hebrew|israel|jewish|tel aviv|jerusalem|torah|bible|히브리|이스라엘|유대|예루살렘",
    "greek": r"greek|greece|athens|plato|homer|math|alphabet|그리스|희랍|아테네|문자|수학",
    "thai": r"thai|bangkok|phuket|chiang mai|태국|타이|방콕|푸껫|치앙마이",
    "devanagari": r"hindi|india|delhi|mumbai|sanskrit|nepal|marathi|devanagari|yoga|kathmandu|힌디|인도|델리|"
    r"뭄바이|산스크리트|범어|네팔|카트만두",
    "bengali": r"bengal|bangla|dhaka|kolkata|벵골|방글라데시|다카",
    "tamil": r"tamil|chennai|sri lanka|타밀",
    "georgian": r"georgia|tbilisi|조지아",
    "armenian": r"armenia|yerevan|아르메니아",
    "khmer": r"khmer|cambodia|phnom penh|캄보디아|크메르",
    "lao": r"\blao|vientiane|라오스",
    "burmese": r"burm|myanmar|yangon|미얀마|버마",
    "ethiopic": r"amharic|ethiopia|addis|암하라|에티오피아",
    "hangul": r"korea|hangul|hangeul|seoul|busan|k-?pop|한국|한글|국어",
}


_KOREAN_OR_ENGLISH = re.compile(r"\benglish\b|\bkorean\b|영어|한국어|우리말", re.IGNORECASE)


# The places among the names above. A question about a country does not ask for its language.
_PLACE = re.compile(
    r"austria|switzerland|berlin|vienna|munich|zurich|hamburg|독일|오스트리아|베를린|빈에서|뮌헨|스위스|france|paris|belgi|quebec|"
    r"québec|montreal|lyon|marseille|프랑스|파리|퀘벡|벨기에|spain|mexic|argentin|chile|colombia|peru|cuba|madrid|barcelona|"
    r"latin america|buenos aires|스페인|멕시코|마드리드|칠레|아르헨티나|페루|portug|brazil|lisbon|são paulo|sao paulo|"
    r"rio de janeiro|포르투갈|브라질|리스본|rome|milan|venice|naples|sicil|florence|이탈리아|로마|밀라노|베네치아|피렌체|"
    r"netherlands|holland|amsterdam|네덜란드|암스테르담|stockholm|스웨덴|denmark|copenhagen|덴마크|norw|oslo|노르웨이|finland|"
    r"helsinki|핀란드|iceland|reykjavik|아이슬란드|poland|warsaw|krakow|폴란드|바르샤바|prague|체코|프라하|슬로바키아|budapest|헝가리|"
    r"부다페스트|bucharest|루마니아|istanbul|ankara|튀르키예|터키|이스탄불|hanoi|saigon|ho chi minh|베트남|하노이|호찌민|jakarta|"
    r"인도네시아|자카르타|kuala lumpur|말레이|philippin|manila|필리핀|마닐라|china|taiwan|hong kong|beijing|shanghai|tokyo|"
    r"kyoto|osaka|singapore|taipei|중국|일본|대만|홍콩|베이징|북경|상하이|상해|도쿄|동경|교토|오사카|타이베이|moscow|kyiv|kiev|"
    r"petersburg|sofia|러시아|우크라이나|불가리아|몽골|모스크바|키이우|egypt|cairo|dubai|iran|pakistan|이집트|카이로|두바이|이란|"
    r"파키스탄|israel|이스라엘|greece|athens|그리스|아테네|bangkok|phuket|chiang mai|태국|방콕|푸껫|치앙마이|delhi|mumbai|인도|"
    r"델리|뭄바이",
    re.IGNORECASE,
)
# Endings that turn a place's name into its language or its people.
_OF_PEOPLE = re.compile(
    r"[a-z]|어|말|인\b|인[이을은에]| ?(?:사람|직원|친구|손님|학생|고객|관광객|가족|동료|아이|분들?|독자)"
)
# Letters: more than the name or the saying that such a question may ask for.
AT_LENGTH = 40


def asks_for_another(question: str, script: str | None, language: str, letters: int) -> bool:
    """Whether the question asks for words in `language` (two letters), or in `script` if that is
    not Latin.

    `letters`: how many letters of it the answer has. A request to translate allows any language,
    unless the question names only languages in other scripts.
    """
    latin = script in (None, "latin")
    hints = _BY_LANGUAGE.get(language) if latin else _BY_SCRIPT.get(script or "")
    if hints and _hints_at(hints, question, letters):
        return True
    if not (_TRANSLATION.search(question) or (letters < AT_LENGTH and _MAY_QUOTE.search(question))):
        return False
    if latin:
        return any(re.search(each, question, re.IGNORECASE) for each in _BY_LANGUAGE.values()) or not _names_a_language(
            question
        )
    return not _names_a_language(question)


def _hints_at(hints: str, question: str, letters: int) -> bool:
    """Whether a question names the language; for a short answer, its country or a city of it is
    enough."""
    matches = list(re.finditer(hints, question, re.IGNORECASE))
    only_places = all(_PLACE.fullmatch(each[0]) and not _OF_PEOPLE.match(question, each.end()) for each in matches)
    return bool(matches) and not (only_places and letters >= AT_LENGTH)


def _names_a_language(question: str) -> bool:
    patterns = (*_BY_LANGUAGE.values(), *_BY_SCRIPT.values())
    return bool(_KOREAN_OR_ENGLISH.search(question)) or any(
        re.search(each, question, re.IGNORECASE) for each in patterns
    )
