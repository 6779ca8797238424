"""The command `featherweight chat`: in the terminal, or with --page as a local page."""

from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.chat.conversation import Conversation
from pipelines.chat.engine import Engine
from pipelines.chat.members import Roster
from pipelines.chat.settings import Settings
from pipelines.chat.terminal import Format, Terminal
from pipelines.errors import UsageError
from pipelines.project import Project


@dataclass(frozen=True)
class ChatOptions:
    """Options of the command. Without `cells`, the comparison's picks answer."""

    cells: Sequence[str] = ()
    temperature: float = 0.0
    max_new_tokens: int = 256
    system: str = ""
    beside: bool = False
    format: Format = "text"
    page: bool = False
    port: int = 3100

    @property
    def settings(self) -> Settings:
        return Settings(self.max_new_tokens, self.temperature, self.system)


def chat(project: Project, options: ChatOptions) -> int:
    """Run the chat until the user quits; returns the exit code.

    Raises:
        UsageError: an invalid cell, setting or port.
    """
    settings = options.settings
    if options.page:
        from pipelines.chat.page import serve

        if options.format != "text":
            raise UsageError("--format json prints answers in the terminal: leave out --page, or --format")
        return serve(project, options.cells, settings, options.port, beside=options.beside)
    members = Roster(project).named(options.cells)
    terminal = Terminal(Engine(project), Conversation(members, settings), format=options.format)
    if options.beside:
        terminal.beside.set()
    return terminal.run()
