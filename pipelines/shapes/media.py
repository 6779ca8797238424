"""Pictures, sound and video that a record brings along: a text model cannot see them, so such a record teaches it to guess."""

import re
from collections.abc import Mapping
from typing import Any

FIELDS = (
    "images", "image", "image_url", "image_path", "image_file", "pictures", "videos", "video", "video_path", "audios", "audio",
    "audio_path", "pixel_values",
)  # fmt: skip
_NAMES = frozenset(FIELDS)
_BEGIN = ("image", "img", "video", "audio", "speech")
BEGINNINGS = frozenset(name[:3] for name in (*_BEGIN, *FIELDS))  # of the names of fields that hold media
PARTS = re.compile(r"(?:input_)?(?:image|video|audio|file)(?:_url|_file)?")
# in front of a question or behind it, as LLaVA and its like write it; in the middle of a sentence it is a word about markup
_MARK = r"<(?:image|video|audio|img)>"
_MARKED = re.compile(
    rf"\A\s*{_MARK}(?=\s*\n|\s*\Z|[A-Z가-힣])|(?:\n|[.?!…]) *{_MARK}\s*\Z|^\s*{_MARK}\s*$"
    r"|<\|(?:image|video|audio|vision_start)[^|\n]*\|>|\[(?:IMG|IMAGE|AUDIO|VIDEO)\](?=\W*[A-Z가-힣\[])"
    # tokens of the models, which no markup has: with an underscore, a number, or in capitals
    r"|<(?:image|img|video|audio)[-_ ]?(?:here|\d+|placeholder|token|pad)>|<\w*_(?:image|img|video|audio)\w*>"
    r"|data:(?:image|audio|video)/[\w.+-]+;base64,"
    r"|<(?-i:IMG|IMAGE|AUDIO|VIDEO)_?\w*>|<(image|audio|video|img|speech|sound)>[^<\n]{1,200}</\1>",
    re.MULTILINE | re.IGNORECASE,
)
# alone, as an input
_FILE = re.compile(r"\S{1,200}\.(?:jpe?g|png|gif|webp|bmp|wav|mp3|flac|ogg|pcm|mp4|avi|webm)", re.IGNORECASE)
_POINTED_AT = re.compile(
    r"\b(?:this|the|attached|above|following) (?:attached |above |following )?(?:picture|image|photo(?:graph)?|"
    r"screenshot|drawing|"
    r"chart|graph|diagram|video|clip|recording|audio)s? (?:above|below|attached|shown|here)\b"
    r"|\b(?:given|uploaded) (?:image|picture|photo)\b|\blisten to the (?:speech|audio|recording|clip)\b|"
    r"\bshown in the (?:video|image)\b"
    r"|\((?:[가-힣]+ )?(?:사진|이미지|그림|영상)(?: 첨부)?\)|(?:올린|올려 ?드린|보내 ?드린) ?사진"
    r"|(?:다음|아래|위) ?(?:그림|그래프|사진|도표|영상|음성)(?:을|를)? ?(?:보고|듣고|보면)"
    r"|\battached (?:picture|image|photo(?:graph)?|screenshot|video|recording|audio)\b"
    r"|\bwhat (?:do you|can you|can be) se(?:e|en) in (?:this|the) (?:picture|image|photo|video)\b"
    r"|\b(?:in|of) this (?:picture|image|photo(?:graph)?|screenshot|video|recording)\b"
    r"|(?:첨부(?:한|된|하신)?|(?<![가-힣])(?:위|아래)의?) ?(?:사진|그림|이미지|동영상|영상|스크린샷)(?:에서|에는|"
    r"에|을|를|은|이|의| ?속)",
    re.IGNORECASE,
)
_WORDS = (
    "icture", "mage", "hoto", "creenshot", "rawing", "hart", "raph", "iagram", "ideo", "clip", "ecording", "udio",
    "사진", "그림", "이미지", "영상", "스크린샷", "그래프", "도표", "음성", "peech",
)  # fmt: skip
_LONG = 400  # characters: a prompt longer than that describes what it speaks of


def field_of(value: Mapping[str, Any]) -> str | None:
    """The field that holds media, None where none of them holds anything."""
    names = [name for name in value if name in _NAMES or str(name).lower().startswith(_BEGIN)]
    return next((name for name in names if value[name] not in (None, "", [], {}, "[]")), None)


def is_part(kind: Any) -> bool:
    return isinstance(kind, str) and bool(PARTS.fullmatch(kind))


def mark_in(text: str) -> str | None:
    """The mark in a question that a picture, a sound or a video belongs there."""
    if _FILE.fullmatch(text.strip()):
        return text.strip()
    found = _MARKED.search(text) if "<" in text or "[" in text or "data:" in text else None
    return found[0].strip() if found else None


def may_point(text: str) -> bool:
    """Whether a text holds a word without which no question points at a picture."""
    return any(word in text for word in _WORDS)


def pointed_at(text: str) -> str | None:
    """The words with which a short question points at a picture that is not there."""
    if len(text) > _LONG or not may_point(text):
        return None
    found = _POINTED_AT.search(text)
    return found[0] if found else None
