"""A conversation: the prompts, and each cell's answers. Every cell continues from its own
answers."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from pipelines.chat.members import Member
from pipelines.chat.settings import Settings

Message = dict[str, str]


@dataclass
class Conversation:
    """A conversation of several members. A member's history omits the prompts that it did not
    answer."""

    members: Sequence[Member]
    settings: Settings
    turns: int = 0
    _history: dict[str, list[Message]] = field(default_factory=dict)

    def messages_for(self, member: Member, prompt: str) -> list[Message]:
        """The messages for the member, with `prompt` as the last."""
        system = [{"role": "system", "content": self.settings.system}] if self.settings.system.strip() else []
        messages = [*system, *self._history.get(member.name, []), {"role": "user", "content": prompt}]
        # A browser or a terminal may send half a surrogate pair, which is not valid text.
        return [{**turn, "content": turn["content"].encode("utf-8", "replace").decode()} for turn in messages]

    def add_answer(self, member: Member, prompt: str, answer: str) -> None:
        """Add the member's answer to `prompt` to its history."""
        turn = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
        self._history.setdefault(member.name, []).extend(turn)

    def start_over(self) -> None:
        self._history.clear()
        self.turns = 0
