"""Writing systems: the scripts of a text, the scripts of languages, and function words of languages
in Latin script."""

import re
from collections.abc import Mapping
from functools import cache, lru_cache
from types import MappingProxyType

# Script → its characters, as the content of a character class.
_RANGES = {
    "hangul": r"\uac00-\ud7a3\u3131-\u318e\u1100-\u11ff",
    "han": r"\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff",
    "kana": r"\u3041-\u3096\u30a1-\u30fa\u30fc",
    "latin": r"A-Za-z\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f\u1e00-\u1eff",
    "cyrillic": r"\u0400-\u052f",
    "greek": r"\u0370-\u03ff\u1f00-\u1fff",
    "arabic": r"\u0621-\u06ff\u0750-\u077f",
    "hebrew": r"\u05d0-\u05ea",
    "thai": r"\u0e01-\u0e4e",
    "devanagari": r"\u0900-\u097f",
    "bengali": r"\u0980-\u09ff",
    "tamil": r"\u0b80-\u0bff",
    "telugu": r"\u0c00-\u0c7f",
    "georgian": r"\u10a0-\u10ff",
    "armenian": r"\u0531-\u058f",
    "khmer": r"\u1780-\u17ff",
    "lao": r"\u0e81-\u0eff",
    "burmese": r"\u1000-\u109f",
    "ethiopic": r"\u1200-\u137f",
    "tibetan": r"\u0f00-\u0fff",
    "sinhala": r"\u0d80-\u0dff",
}
# Language → its scripts; languages that are missing here use Latin script.
_LANGUAGES = {
    "ko": ("hangul",), "zh": ("han",), "ja": ("kana", "han"), "ru": ("cyrillic",), "uk": ("cyrillic",),
    "be": ("cyrillic",), "bg": ("cyrillic",), "sr": ("cyrillic", "latin"), "mk": ("cyrillic",), "kk": ("cyrillic",),
    "ky": ("cyrillic",), "mn": ("cyrillic",), "el": ("greek",), "ar": ("arabic",), "fa": ("arabic",), "ur": ("arabic",),
    "ps": ("arabic",), "ug": ("arabic",), "he": ("hebrew",), "th": ("thai",), "hi": ("devanagari",), "mr": ("devanagari",),
    "ne": ("devanagari",), "bn": ("bengali",), "as": ("bengali",), "ta": ("tamil",), "te": ("telugu",), "ka": ("georgian",),
    "hy": ("armenian",), "km": ("khmer",), "lo": ("lao",), "my": ("burmese",), "am": ("ethiopic",), "dz": ("tibetan",),
    "si": ("sinhala",),
}  # fmt: skip
# One letter of these scripts says as much as several of an alphabet.
_WEIGHT = {"han": 3.0, "hangul": 2.0, "kana": 1.5}
FUNCTION_WORDS = {
    "de": "der die das und ist nicht ein eine einen dem den des mit für auf von zu sich auch es sie wir ihr er ich "
    "wie aber oder wenn nur bei nach aus wird werden sind kann können im am zum zur dass nehmen sehr etwas "
    "haben hat bitte nein ja",
    "fr": "le la les un une des et est que qui dans pour pas sur avec ce cette il elle nous vous ils je tu ne se "
    "sont du de au aux en par plus mais ou si leur son sa ses être avoir fait oui non votre vos très sans",
    "es": "el la los las un una y es que en de del por para con no se su sus lo como más pero o si al está están "
    "son muy este esta puede ser hay también ya mi tu usa sobre entre cuando sin",
    "pt": "o a os as um uma e é que em de do da dos das por para com não se seu sua como mais mas ou ao está são "
    "muito este esta pode ser há também já no na nos nas você foi",
    "it": "il lo la i gli le un una e è che in di del della dei delle per con non si suo sua come più ma o al alla "
    "sono questo questa può essere anche già nel nella da ha mi ti ci",
    "nl": "de het een en is niet van in op te dat die met voor zijn er aan als maar om ook bij of naar wat uit nog "
    "wel geen kan worden wordt je hij zij wij dit deze u men over heeft",
    "sv": "och att det är en ett som på av för med inte den till jag du han hon vi de har om kan ska var men eller "
    "från",
    "da": "og at det er en et som på af for med ikke den til jeg du han hun vi de har om kan skal var men eller fra",
    "no": "og at det er en et som på av for med ikke den til jeg du han hun vi de har om kan skal var men eller fra",
    "fi": "ja on ei se että en oli hän mutta niin kun myös tai ovat ole minä sinä joka mitä kuin",
    "pl": "i w nie na się z do to że jest o jak a po ale co tak za od są dla przez może czy już był być który",
    "cs": "a v se na je že to s z do o k i jako ale by za jsou pro po není nebo který být",
    "ro": "și în de la a cu nu este pe că un o sunt din pentru mai sau care se ca fi",
    "hu": "a az és hogy nem is egy van ez meg de mint csak vagy már ha el kell",
    "tr": "ve bir bu da de için ile çok ne gibi daha var yok ama olarak sonra kadar en her ya koyun",
    "vi": "là và của có không được cho một các những người với trong này đó khi để thì từ đã sẽ rất cũng như bạn nên",
    "id": "yang dan di ini itu dengan untuk tidak dari dalam pada adalah ke saya anda akan bisa oleh atau juga "
    "karena ada",
    "ms": "yang dan di ini itu dengan untuk tidak dari dalam pada adalah ke saya anda akan boleh oleh atau juga "
    "kerana ada",
    "tl": "ang ng sa na mga ay at hindi ito ko mo siya ako para may kung",
    "ca": "el la els les un una i és que en de del per amb no es seu seva com més però o si al són molt aquest",
    "la": "et in est non ad cum sed ut qui quod ex per si ab",
    "sw": "na ya wa ni kwa katika za la cha kuwa hii hiyo",
}
FUNCTION_WORDS = {language: frozenset(words.split()) for language, words in FUNCTION_WORDS.items()}


@cache
def _pattern(script: str) -> re.Pattern[str]:
    return re.compile(f"[{_RANGES[script]}]+")


# The language rule calls this several times with the same text.
@lru_cache(64)
def script_shares(text: str) -> Mapping[str, float]:
    """Script → its share of the letters, weighted by how much one letter of it says."""
    weights: dict[str, float] = {}
    if text.isascii():
        return MappingProxyType({"latin": 1.0} if any(map(str.isalpha, text)) else {})
    for script in _RANGES:
        if letters := sum(map(len, _pattern(script).findall(text))):
            weights[script] = letters * _WEIGHT.get(script, 1.0)
    total = sum(weights.values())
    return MappingProxyType({script: weight / total for script, weight in weights.items()})


def letters_of(text: str, script: str) -> str:
    """The words of a text in a script, as one text."""
    scripts = ("kana", "han") if script == "kana" else (script,)
    return " ".join(re.findall(f"[{''.join(_RANGES[each] for each in scripts)}]+", text))


def main_script(text: str) -> str | None:
    """The script with the greatest share; None if a text has no letters."""
    shares = script_shares(text)
    if shares.get("kana", 0.0) > 0.05 and shares.get("hangul", 0.0) < 0.3:
        return "kana"
    return max(shares, key=lambda script: shares[script], default=None)


def scripts_of(language: str) -> tuple[str, ...]:
    """The scripts of a language, given as a two-letter code."""
    return _LANGUAGES.get(language, ("latin",))
