"""The content of our Modelfiles, in the format of Ollama's reader."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

OURS = "Written by Featherweight: the prompt is the one that the model was trained with."


@dataclass(frozen=True)
class Modelfile:
    """The content of a Modelfile. `notes` become comments."""

    file: str
    template: str
    stops: Sequence[str]
    system: str | None
    notes: Sequence[str]

    def text(self) -> str:
        lines = [
            *(f"# {note}" for note in self.notes),
            f"FROM ./{self.file}",
            f'TEMPLATE """{self.template}"""',
            *(f'PARAMETER stop "{stop}"' for stop in self.stops),
            *([f'SYSTEM """{self.system}"""'] if self.system else []),
        ]
        return "\n".join(lines) + "\n"


def is_sayable(text: str) -> bool:
    """Whether the text survives in a Modelfile.

    Ollama's reader drops unprintable characters, and three quotation marks end a value.
    """
    lines = re.sub(r"[\n\t]", "", text)
    return bool(text) and '"' not in text[:1] + text[-1:] and '"""' not in text and lines.isprintable()


def is_ours(path: Path) -> bool:
    """Whether this module wrote the file at `path`, so that it may be replaced."""
    with path.open(encoding="utf-8", errors="replace") as opened:
        return OURS in opened.readline()
