"""Building blocks of the report: the environment of its templates, and a part with heading,
pictures and table."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from pipelines.compare import disturbed
from pipelines.compare.figures import Figure
from pipelines.compare.show import Columns, cell_text, pick_answer, row_text
from pipelines.lake.schema import Column
from pipelines.records.foreign_text import plain

Row = dict[str, Any]
HANGUL = re.compile(r"[\u1100-\u11ff\u3130-\u318f\uac00-\ud7a3]")


@dataclass(frozen=True)
class Part:
    """A part of a section: heading, notes, pictures, and a table whose column `method` heads the
    rows.

    `key` is the part's unique name in the page, in ASCII letters.
    """

    key: str
    title: str
    notes: Sequence[str] = ()
    figures: Sequence[Figure] = ()
    caption: str = ""
    columns: Columns = ()
    rows: Sequence[Row] = ()

    def html(self) -> Markup:
        """The part as HTML. Every text is escaped, except in the pictures, which are our own."""
        return Markup(environment().get_template("part.html.j2").render(part=self))


@cache
def environment() -> Environment:
    """The templates of the page and the functions that they may call."""
    jinja = Environment(loader=PackageLoader("pipelines.compare"), autoescape=True, undefined=StrictUndefined)
    jinja.filters |= {"plain": plain, "lang": language_attribute}
    jinja.globals |= {"cell_text": cell_text, "row_text": row_text, "pick_answer": pick_answer, "beside": _beside}
    return jinja


def _beside(row: Row, column: Column) -> str | None:
    """The title of a marked value; None if it is not marked."""
    return disturbed.in_words([row], lambda _: "it") if disturbed.is_marked(row, column.name) else None


def language_attribute(text: str) -> Markup:
    """` lang="ko"` for text with Hangul, so that it is drawn and read aloud as Korean; empty for
    other text."""
    return Markup(' lang="ko"') if HANGUL.search(text[:2000]) else Markup("")
