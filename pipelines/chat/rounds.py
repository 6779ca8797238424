"""The open sessions of the page: conversations with shown or hidden names, and votes on answers."""

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

# Beyond this number, the least recently used session is dropped.
MAX_SESSIONS = 64
LETTERS = "ABCDEFGH"
Json = dict[str, Any]


@dataclass
class ChatSession:
    """A conversation on a page.

    `blind` hides the names until a vote, which ends the session. `answers` are those of the last
    round by the member's place.
    """

    id: str
    conversation: Conversation
    blind: bool
    prompt: str = ""
    answers: dict[int, Event] = field(default_factory=dict)
    is_busy: bool = False
    has_voted: bool = False

    @property
    def slots(self) -> list[Json]:
        """The label of each place that the page may show."""
        members = self.conversation.members
        if self.blind and not self.has_voted:
            return [{"label": f"Answer {LETTERS[place]}"} for place in range(len(members))]
        return [{"label": member.label} for member in members]

    @property
    def can_vote(self) -> bool:
        """Whether this is a blind round in which every member has answered without being
        stopped."""
        complete = [event for event in self.answers.values() if event.kind == "done" and event.ended != "stopped"]
        return (
            self.blind and not self.has_voted and not self.is_busy and len(complete) == len(self.conversation.members)
        )

    def begin(self, prompt: str) -> None:
        """Start a new round.

        Raises:
            UsageError: the last round is not over, or a vote has ended the session.
        """
        if self.is_busy:
            raise UsageError("this conversation is being answered: wait, or stop it")
        if self.has_voted:
            raise UsageError("the vote has ended this conversation: start a new one")
        self.prompt, self.answers, self.is_busy = prompt, {}, True

    def shown_to(self, event: Event) -> Json:
        """The event for the page. While names are hidden it has no speed, which might reveal
        them."""
        fields = event.to_json()
        if self.blind and not self.has_voted:
            fields |= {"seconds": None, "tokens_per_second": None, "tokens": None}
        return fields

    def preference(self, choice: Any) -> Preference:
        """The vote on the last round. `choice` is an answer's place, `tie` or `neither`.

        Raises:
            UsageError: there is nothing to vote on, or the choice is invalid.
        """
        members, settings = self.conversation.members, self.conversation.settings
        if not self.can_vote:
            raise UsageError("nothing to vote on: a vote needs a blind round with all answers, and counts once")
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
        """Save the vote; returns the hidden names and speeds.

        Raises:
            UsageError: as `preference`.
            WorkError: the vote could not be written; it can be cast again.
        """
        append(data, self.preference(choice))
        self.has_voted = True
        speeds = [self.answers[place] for place in range(len(self.conversation.members))]
        return {"slots": self.slots, "speeds": [event.to_json() for event in speeds]}


class ChatSessions:
    """The open sessions, the most recently used last."""

    def __init__(self) -> None:
        self._held: OrderedDict[str, ChatSession] = OrderedDict()

    def new(self, members: Sequence[Member], settings: Settings, *, blind: bool) -> ChatSession:
        """A new session. A blind one has its members in random order.

        Raises:
            UsageError: too few members.
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
        """The session of that id. Raises UsageError if it is no longer open."""
        if name not in self._held:
            raise UsageError("this conversation is no longer open: start a new one")
        self._held.move_to_end(name)
        return self._held[name]
