"""Pictures, sound and video in a record.

A text model cannot see them, so such a record would teach it to guess.
"""

import re
from collections.abc import Mapping
from typing import Any

FIELDS = (
    "images", "image", "image_url", "image_path", "image_file", "pictures", "videos", "video", "video_path", "audios", "audio",
    "audio_path", "pixel_values",
)  # fmt: skip
_NAMES = frozenset(FIELDS)
# Keys of media in Gemini's parts.
DATA = ("fileData", "file_data", "inlineData", "inline_data")
_BEGIN = ("image", "img", "video", "audio", "speech")
# The first letters of names of fields with media.
BEGINNINGS = frozenset(name[:3] for name in (*_BEGIN, *FIELDS))
PARTS = re.compile(r"(?:input_)?(?:image|video|audio|file)(?:_url|_file)?")
# Before or after a question, as in LLaVA's data and similar ones. Within a sentence the tag is a
# word about markup.
_MARK = r"<(?:image|video|audio|img)>"
_MARKED = re.compile(
    rf"\A\s*{_MARK}(?=\s*\n|\s*\Z|[A-Z가-힣])|(?:\n|[.?!…]) *{_MARK}\s*\Z|^\s*{_MARK}\s*$"
    r"|<\|(?:image|video|audio|vision_start)[^|\n]*\|>|\[(?:IMG|IMAGE|AUDIO|VIDEO)\](?=\W*[A-Z가-힣\[])"
    # Tokens of models, which markup does not have: with an underscore, a number, or in capitals.
    r"|<(?:image|img|video|audio)[-_ ]?(?:here|\d+|placeholder|token|pad)>|<\w*_(?:image|img|video|audio)\w*>"
    r"|^!\[[^\]\n]*\]\((?:attachment:|https?://|\.{0,2}/|\w)[^)\n]*\)\s*$|\[(?:이미지|사진|그림|동영상|영상|음성|오디오)\]\s*\Z"
    r"|data:(?:image|audio|video)/[\w.+-]+;base64,"
    r"|<(?-i:IMG|IMAGE|AUDIO|VIDEO)_?\w*>|<(image|audio|video|img|speech|sound)>[^<\n]{1,200}</\1>",
    re.MULTILINE | re.IGNORECASE,
)
# A file name as the complete input.
_FILE = re.compile(r"\S{1,200}\.(?:jpe?g|png|gif|webp|bmp|wav|mp3|flac|ogg|pcm|mp4|avi|webm)", re.IGNORECASE)
_POINTED_AT = re.compile(
    r"\b(?:this|the|attached|above|following) (?:attached |above |following )?(?:picture|image|photo(?:graph)?|"
    r"screenshot|drawing|"
    r"chart|graph|diagram|video|clip|recording|audio)s? (?:above|below|attached|shown|here)\b"
    r"|\b(?:given|uploaded) (?:image|picture|photo)\b|\blisten to the (?:speech|audio|recording|clip)\b|"
    r"\bshown in the (?:video|image)\b"
    r"|\b(?:you )?see in (?:this|the) (?:picture|image|photo(?:graph)?|painting|video|screenshot)\b"
    r"|\A\W*(?:(?:in|from|looking at|according to|based on|look at|describe|examine|study|consider) )?(?:the|"
    r"this) (?:[\w-]+ )?(?:figure|"
    r"picture|image|photo(?:graph)?|screenshot|diagram)\b,? (?:what|which|how|who|where|find|is|are|does|and)\b"
    r"|\b(?:chart|graph|diagram|map) (?:shown|above|below|attached)\b"
    r"|(?<![가-힣])이 ?(?:사진|그림|이미지|스크린샷|동영상)(?:에서?|에는|속|을|은|이|의) |다음 (?:그림|사진|"
    r"이미지) (?:[가-힣]+ )?(?:\d+|[두세네]|다섯) ?(?:개|장|가지)?"
    r"|\((?:[가-힣]+ )?(?:사진|이미지|그림|영상)(?: 첨부)?\)|(?:올린|올려 ?드린|보내 ?드린) ?사진"
    r"|(?:다음|아래|위) ?(?:그림|그래프|사진|도표|영상|음성)(?:을|를)? ?(?:보고|듣고|보면)"
    r"|\battached (?:picture|image|photo(?:graph)?|screenshot|video|recording|audio)\b"
    r"|\bwhat (?:do you|can you|can be) se(?:e|en) in (?:this|the) (?:picture|image|photo|video)\b"
    r"|\b(?:in|of) this (?:picture|image|photo(?:graph)?|screenshot|video|recording)\b"
    r"|(?:첨부(?:한|된|하신)?|(?<![가-힣])(?:위|아래)의?) ?(?:사진|그림|이미지|동영상|영상|스크린샷)(?:에서|에는|"
    r"에|을|를|은|이|의| ?속)",
    re.IGNORECASE,
)
_UPLOADED = re.compile(
    r"\bI(?:(?:'|’)ve|(?:'|’)m| am)? (?:just |have |already )*(?:upload(?:ed|ing)|attach(?:ed|ing)|sen(?:t|ding) you|"
    r"shar(?:ed|ing))\b[^.?!\n]{0,30}\b(?:picture|"
    r"image|photo(?:graph)?|"
    r"painting|screenshot|drawing|chart|graph|diagram|video|clip|recording|audio|sketch|scan)\b"
    r"|\b(?:picture|image|photo(?:graph)?|painting|screenshot|drawing|chart|graph|diagram|video|clip|recording|sketch|scan) "
    r"(?:that )?I(?:(?:'|’)ve)? (?:just |have |already )*(?:uploaded|attached|sent|shared)\b"
    r"|(?:올린|올려 ?드린|보내 ?드린|첨부한) ?사진|첨부(?:한|된|하신) ?(?:녹음|음성|오디오|영상|동영상)",
    re.IGNORECASE,
)
_WORDS = (
    "icture", "mage", "hoto", "creenshot", "rawing", "hart", "raph", "iagram", "ideo", "clip", "ecording", "udio", "peech",
    "ainting", "igure", "ketch", " scan", " map",
)  # fmt: skip
_KOREAN_WORDS = ("사진", "그림", "이미지", "영상", "스크린샷", "그래프", "도표", "음성", "오디오", "녹음")  # fmt: skip
# A prompt with more characters describes its subject itself.
_LONG = 400


def field_of(value: Mapping[str, Any]) -> str | None:
    """The field that contains media, or None."""
    names = [name for name in value if name in _NAMES or str(name).lower().startswith(_BEGIN)]
    return next((name for name in names if value[name] not in (None, "", [], {}, "[]")), None)


def kind_of_part(part: Mapping[str, Any]) -> str | None:
    """The kind of media of a part of a message's content; None for text."""
    kind = part.get("type")
    if isinstance(kind, str) and PARTS.fullmatch(kind):
        return kind
    return next((name for name in DATA if part.get(name)), None)


def mark_in(text: str) -> str | None:
    """The mark of a picture, a sound or a video in a question, or None."""
    if _FILE.fullmatch(text.strip()):
        return text.strip()
    if "![" in text and "arkdown" in text:
        return None
    match = _MARKED.search(text) if "<" in text or "[" in text or "data:" in text else None
    return match[0].strip() if match else None


def may_point(text: str) -> bool:
    """Whether a text has one of the words that every reference to a picture contains."""
    return any(map(text.__contains__, _WORDS)) or (not text.isascii() and any(map(text.__contains__, _KOREAN_WORDS)))


def pointed_at(text: str) -> str | None:
    """The words with which a short question refers to a missing picture, or None."""
    if len(text) > _LONG or not may_point(text):
        return None
    match = _POINTED_AT.search(text) or _UPLOADED.search(text)
    return match[0] if match else None


def uploaded(text: str) -> str | None:
    """The words with which a question says that it comes with a picture, or None."""
    match = _UPLOADED.search(text) if may_point(text) else None
    return match[0] if match else None
