"""What stands in a Modelfile of ours, as Ollama's reader takes it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

OURS = "Written by Featherweight: the prompt is the one that the model was trained with."


@dataclass(frozen=True)
class Modelfile:
    """What the file says. `notes` are for its reader."""

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
    """Whether a Modelfile's reader takes the text as it is: it drops what is not printed, and three quotation marks end a value."""
    lines = re.sub(r"[\n\t]", "", text)
    return bool(text) and '"' not in text[:1] + text[-1:] and '"""' not in text and lines.isprintable()


def is_ours(path: Path) -> bool:
    """Whether the file at `path` was written here, so that it may be replaced."""
    with path.open(encoding="utf-8", errors="replace") as opened:
        return OURS in opened.readline()
