"""The viewer in a terminal: the list of episodes left, one or two episodes right, by Textual.

It shows the same rows, filters and episodes as the page. Texts of models and programs are escaped
(`retool_env.printable`) and never read as markup, so no text reaches the terminal as a command.
Colours repeat what words say.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from retool_env.errors import MissingPackage, RetoolError
from retool_env.evaluation.view.episode import episode_view
from retool_env.evaluation.view.filters import episode_key
from retool_env.evaluation.view.index import Index
from retool_env.evaluation.view.static import matching
from retool_env.evaluation.view.tokens import tokens_view
from retool_env.printable import one_line

try:
    from rich.text import Text
    from textual import on, work
    from textual.app import App, ComposeResult
    from textual.binding import Binding, BindingType
    from textual.containers import Horizontal, Vertical, VerticalScroll
    from textual.widgets import DataTable, Footer, Input, Static

    from retool_env.evaluation.view.terminal_text import (
        NOTE,
        RIGHT,
        WRONG,
        Piece,
        blocks,
        token_blocks,
    )
except ImportError:
    raise MissingPackage(
        "the view in a terminal needs the package textual: pip install 'retool-env[report]'"
    ) from None

POLL_SECONDS = 2.0
"""The time between two looks at a run that goes on."""

_VERDICTS = {True: ("right", RIGHT), False: ("wrong", WRONG), None: ("none", NOTE)}

_HELP = """j, ↓    next episode in the list
k, ↑    previous episode in the list
Enter   open the episode
/       write a filter; Enter applies it
n       next failed call
p       previous failed call
t       show or hide the tokens
s       show or hide a second episode side by side: the same episode of the other run,
        or the episode that is marked in the list
Esc     leave: the filter, the second episode, then the episode
?       show or hide this help
q       end the viewer"""


def show(indexes: Sequence[Index], query: str = "", episode: str | None = None) -> None:
    """Shows runs in this terminal until the reader ends the viewer.

    Args:
        indexes: The indexes of the runs, read.
        query: The filter query at the beginning.
        episode: The address of the episode that is open at the beginning; `None`: no episode.
    """
    Viewer(indexes, query, episode).run()
    for index in indexes:
        index.close()


class Pane(VerticalScroll):
    """One episode: a widget for each block."""

    shown: tuple[int, str] | None = None
    """The number of the run and the address of the shown episode; `None`: nothing is shown."""

    async def fill(self, shown: tuple[int, str] | None, pieces: Sequence[Piece]) -> None:
        """Shows blocks in place of the present ones.

        Args:
            shown: The number of the run and the address of the episode.
            pieces: The blocks.
        """
        same, place = shown == self.shown, self.scroll_y
        self.shown = shown
        await self.remove_children()
        await self.mount_all(
            Static(piece.text, classes=f"block {piece.kind}", markup=False) for piece in pieces
        )
        self.scroll_to(y=place if same else 0, animate=False)

    def go_to_failed(self, step: int) -> None:
        """Scrolls to the next or the previous failed call.

        Args:
            step: 1 for the next call, -1 for the previous call.
        """
        calls = list(self.query(".failed"))
        marked = next((n for n, call in enumerate(calls) if call.has_class("marked")), None)
        if not calls:
            return
        first = 0 if step > 0 else len(calls) - 1
        chosen = first if marked is None else (marked + step) % len(calls)
        for number, call in enumerate(calls):
            call.set_class(number == chosen, "marked")
        self.scroll_to_widget(calls[chosen], animate=False, top=True)


class Viewer(App[None]):
    """The application.

    Args:
        indexes: The indexes of the runs, read.
        query: The filter query at the beginning.
        episode: The address of the episode that is open at the beginning.
    """

    TITLE = "retool view"
    ENABLE_COMMAND_PALETTE = False
    CSS = """
    #list { width: 40%; max-width: 64; border-right: solid $secondary; }
    #episodes { height: 1fr; }
    #matches, #help { height: auto; padding: 0 1; }
    Pane { width: 1fr; }
    .block { height: auto; padding: 0 1; }
    .head, .span { background: $boost; }
    .program, .result, .failed, .fault { padding: 0 1 0 3; }
    .marked { background: $error 25%; }
    #help, #second { display: none; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("j", "move(1)", "next"),
        Binding("k", "move(-1)", "previous"),
        Binding("slash", "query", "filter", key_display="/"),
        Binding("n", "failed(1)", "next failed"),
        Binding("p", "failed(-1)", "previous failed"),
        Binding("t", "tokens", "tokens"),
        Binding("s", "beside", "side by side"),
        Binding("escape", "leave", "leave"),
        Binding("question_mark", "help", "keys", key_display="?"),
        Binding("q", "quit", "end"),
    ]

    def __init__(
        self, indexes: Sequence[Index], query: str = "", episode: str | None = None
    ) -> None:
        super().__init__()
        self._indexes = list(indexes)
        self._query = query
        self._first = episode
        self._listed: list[tuple[int, str]] = []
        self._with_tokens = False

    def compose(self) -> ComposeResult:
        """The widgets."""
        with Horizontal():
            with Vertical(id="list"):
                yield Input(self._query, placeholder="right:no error:timeout", id="query")
                yield Static(id="matches", markup=False)
                yield DataTable(id="episodes", cursor_type="row")
            yield Pane(id="first")
            yield Pane(id="second")
        yield Static(_HELP, id="help", markup=False)
        yield Footer()

    async def on_mount(self) -> None:
        """Fills the list, and opens the first episode."""
        table = self._table
        table.add_columns("grade", "calls", "episode")
        table.focus()
        self._filter()
        if self._first is not None:
            number = next(n for n, index in enumerate(self._indexes) if index.has(self._first))
            await self._open(self._pane("first"), (number, self._first))
        self.set_interval(POLL_SECONDS, self._poll)

    # --- the list --------------------------------------------------------------------------------

    @property
    def _table(self) -> DataTable[Text]:
        return self.query_one("#episodes", DataTable)

    @on(Input.Submitted, "#query")
    def _apply(self, event: Input.Submitted) -> None:
        self._query = event.value
        self._filter()
        self._table.focus()

    @work(thread=True, exclusive=True, group="filter")
    def _filter(self) -> None:
        """Finds the episodes that the filter keeps; a search of texts reads all episodes."""
        query = self._query
        try:
            kept = matching(self._indexes, query)
        except (RetoolError, OSError) as error:
            self.call_from_thread(self._say, one_line(str(error), 300), WRONG)
            return
        self.call_from_thread(self._list, query, kept)

    def _list(self, query: str, kept: Sequence[Sequence[str]]) -> None:
        """Fills the list; the cursor stays on its episode."""
        if query != self._query:  # the reader has written another filter since
            return
        before = self._marked()
        self._listed = [(n, address) for n, some in enumerate(kept) for address in some]
        table = self._table
        table.clear()
        for number, address in self._listed:
            table.add_row(*self._cells(number, address))
        if before in self._listed:
            table.move_cursor(row=self._listed.index(before))
        whole = sum(len(index.rows()) for index in self._indexes)
        self._say(f"{len(self._listed):,} of {whole:,} episodes")

    def _cells(self, number: int, address: str) -> tuple[Text, Text, Text]:
        row = self._indexes[number].row(address)
        word, style = _VERDICTS[row["right"]]
        calls = f"{row['calls']} ({row['failed']} failed)" if row["failed"] else str(row["calls"])
        run = f"{number + 1}. " if len(self._indexes) > 1 else ""
        return Text(word, style), Text(calls), Text(run + one_line(address, 200))

    def _say(self, words: str, style: str = "") -> None:
        self.query_one("#matches", Static).update(Text(words, style))

    def _marked(self) -> tuple[int, str] | None:
        """The episode under the cursor of the list."""
        row = self._table.cursor_row
        return self._listed[row] if 0 <= row < len(self._listed) else None

    @work(thread=True, exclusive=True, group="poll")
    def _poll(self) -> None:
        """Reads the lines that the runs have gained."""
        try:
            changed = [index.refresh() for index in self._indexes]
        except (RetoolError, OSError) as error:
            self.call_from_thread(self._say, one_line(str(error), 300), WRONG)
            return
        if any(changed):
            self.call_from_thread(self._filter)

    # --- the episodes ----------------------------------------------------------------------------

    def _pane(self, name: str) -> Pane:
        return self.query_one(f"#{name}", Pane)

    @on(DataTable.RowSelected, "#episodes")
    async def _chosen(self) -> None:
        if (episode := self._marked()) is not None:
            await self._open(self._pane("first"), episode)

    async def _open(self, pane: Pane, episode: tuple[int, str]) -> None:
        """Shows an episode; a record that can't be read is named in its place."""
        number, address = episode
        try:
            view = episode_view(self._indexes[number], address)
            pieces = blocks(view)
            if self._with_tokens:
                pieces += token_blocks(view, tokens_view(self._indexes[number], address))
        except (RetoolError, OSError) as error:
            pieces = [Piece("failed", Text(one_line(str(error), 300), WRONG))]
        await pane.fill(episode, pieces)

    async def action_tokens(self) -> None:
        """Shows or hides the tokens."""
        self._with_tokens = not self._with_tokens
        for pane in self.query(Pane):
            if pane.shown is not None:
                await self._open(pane, pane.shown)

    async def action_beside(self) -> None:
        """Shows or hides a second episode."""
        second = self._pane("second")
        if second.display:
            second.display = False
            return
        if (episode := self._other()) is None:
            self._say("mark another episode in the list, or open two runs", NOTE)
            return
        second.display = True
        await self._open(second, episode)

    def _other(self) -> tuple[int, str] | None:
        """The same episode of the other run, or the marked episode."""
        shown = self._pane("first").shown
        if shown is not None and len(self._indexes) == 2:
            mine, others = (self._indexes[n] for n in (shown[0], 1 - shown[0]))
            key = episode_key(mine.row(shown[1]))
            same = (row["address"] for row in others.rows() if episode_key(row) == key)
            if (address := next(same, None)) is not None:
                return 1 - shown[0], address
        marked = self._marked()
        return None if shown is None or marked == shown else marked

    # --- keys ------------------------------------------------------------------------------------

    def action_move(self, step: int) -> None:
        """Moves the cursor of the list."""
        table = self._table
        table.move_cursor(row=table.cursor_row + step)

    def action_query(self) -> None:
        """Goes to the filter."""
        self.query_one("#query", Input).focus()

    def action_failed(self, step: int) -> None:
        """Goes to the next or the previous failed call."""
        self._pane("first").go_to_failed(step)

    async def action_leave(self) -> None:
        """Leaves the filter, the second episode or the episode."""
        table, second = self._table, self._pane("second")
        if self.focused is not table:
            table.focus()
        elif second.display:
            second.display = False
        else:
            await self._pane("first").fill(None, [])

    def action_help(self) -> None:
        """Shows or hides the keys."""
        help_text = self.query_one("#help", Static)
        help_text.display = not help_text.display
