"""What was asked, and what each cell has answered so far: every cell goes on from its own answers."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from pipelines.chat.members import Member
from pipelines.chat.settings import Settings

Message = dict[str, str]


@dataclass
class Conversation:
    """Of several members. A prompt that a member did not answer is no part of what it is shown later."""

    members: Sequence[Member]
    settings: Settings
    turns: int = 0
    _history: dict[str, list[Message]] = field(default_factory=dict)

    def messages_for(self, member: Member, prompt: str) -> list[Message]:
        """The messages that the member answers, `prompt` the last."""
        system = [{"role": "system", "content": self.settings.system}] if self.settings.system.strip() else []
        messages = [*system, *self._history.get(member.name, []), {"role": "user", "content": prompt}]
        # half a surrogate pair, which a browser or a terminal may send, is no text
        return [{**turn, "content": turn["content"].encode("utf-8", "replace").decode()} for turn in messages]

    def add_answer(self, member: Member, prompt: str, answer: str) -> None:
        """Keep what the member said to `prompt`."""
        turn = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
        self._history.setdefault(member.name, []).extend(turn)

    def start_over(self) -> None:
        self._history.clear()
        self.turns = 0
