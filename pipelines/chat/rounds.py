"""What the page's visitors have open: conversations, whose names are shown or hidden, and what was answered and may be voted on."""

import random
import secrets
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pipelines.chat.conversation import Conversation
from pipelines.chat.engine import Event
from pipelines.chat.members import Member
from pipelines.chat.settings import Settings
from pipelines.compare.votes import NEITHER, TIE, Preference, Shown, append
from pipelines.errors import UsageError
from pipelines.lake.paths import DataRoot

MAX_SESSIONS = 64  # conversations; the one that was used longest ago goes
LETTERS = "ABCDEFGH"
Json = dict[str, Any]


@dataclass
class ChatSession:
    """A conversation on somebody's page. `blind`: names are hidden until a vote, which ends it. `answers` are the last round's, by
    the member's place."""

    id: str
    conversation: Conversation
    blind: bool
    prompt: str = ""
    answers: dict[int, Event] = field(default_factory=dict)
    is_busy: bool = False
    has_voted: bool = False

    @property
    def slots(self) -> list[Json]:
        """What the page may know of each place."""
        members = self.conversation.members
        if self.blind and not self.has_voted:
            return [{"label": f"Answer {LETTERS[place]}"} for place in range(len(members))]
        return [{"label": member.label} for member in members]

    @property
    def can_vote(self) -> bool:
        """Whether every member has given an answer that nobody cut off."""
        complete = [event for event in self.answers.values() if event.kind == "done" and event.ended != "stopped"]
        return (
            self.blind and not self.has_voted and not self.is_busy and len(complete) == len(self.conversation.members)
        )

    def begin(self, prompt: str) -> None:
        """A new round.

        Raises:
            UsageError: the last one is not over, or the vote has ended the conversation.
        """
        if self.is_busy:
            raise UsageError("this conversation is being answered: wait, or stop it")
        if self.has_voted:
            raise UsageError("a vote ends its conversation: begin a new one")
        self.prompt, self.answers, self.is_busy = prompt, {}, True

    def shown_to(self, event: Event) -> Json:
        """The event as the page gets it: while names are hidden, without the speed, which may give them away."""
        fields = event.to_json()
        if self.blind and not self.has_voted:
            fields |= {"seconds": None, "tokens_per_second": None, "tokens": None}
        return fields

    def preference(self, choice: Any) -> Preference:
        """The vote on the last round. `choice`: an answer's place, `tie` or `neither`.

        Raises:
            UsageError: there is nothing to vote on, or no such choice.
        """
        members, settings = self.conversation.members, self.conversation.settings
        if not self.can_vote:
            raise UsageError("nothing to vote on: a blind round whose answers are all there, once")
        is_place = type(choice) is int and 0 <= choice < len(members)
        if not is_place and choice not in (TIE, NEITHER):
            raise UsageError(f"a vote for {choice!r}; expected 0 to {len(members) - 1}, {TIE} or {NEITHER}")
        shown = tuple(
            Shown(member.key.model, member.key.method, member.key.seed, member.run_id, self.answers[place].text)
            for place, member in enumerate(members)
        )
        options = {
            "temperature": settings.temperature,
            "max_new_tokens": settings.max_new_tokens,
            "system": settings.system,
            "turn": self.conversation.turns,
        }
        return Preference(self.prompt, shown, choice, options)

    def vote(self, data: DataRoot, choice: Any) -> Json:
        """Keep the vote; returns what was hidden.

        Raises:
            UsageError: as `preference`.
            WorkError: it could not be written, and may be cast again.
        """
        append(data, self.preference(choice))
        self.has_voted = True
        speeds = [self.answers[place] for place in range(len(self.conversation.members))]
        return {"slots": self.slots, "speeds": [event.to_json() for event in speeds]}


class ChatSessions:
    """The conversations that are open, the newest last."""

    def __init__(self) -> None:
        self._held: OrderedDict[str, ChatSession] = OrderedDict()

    def new(self, members: Sequence[Member], settings: Settings, *, blind: bool) -> ChatSession:
        """A conversation; a blind one shows its members in an order of its own.

        Raises:
            UsageError: too few members to choose from.
        """
        if not members or (blind and len(members) < 2):
            raise UsageError(
                f"{len(members)} cells are chosen; expected {'two or more to vote' if blind else 'one or more'}"
            )
        order = list(members)
        if blind:
            random.SystemRandom().shuffle(order)
        session = ChatSession(secrets.token_urlsafe(16), Conversation(order, settings), blind)
        self._held[session.id] = session
        while len(self._held) > MAX_SESSIONS:
            self._held.popitem(last=False)
        return session

    def get(self, name: str) -> ChatSession:
        """Raises UsageError where it is not open any more."""
        if name not in self._held:
            raise UsageError("this conversation is not open any more: begin a new one")
        self._held.move_to_end(name)
        return self._held[name]
