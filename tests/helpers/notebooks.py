"""A fake sandbox for tests of callers of episodes: it reports the session of each block."""

from __future__ import annotations

from collections.abc import Callable

from retool_env.sandbox import Execution, Limits, Outcome

Answer = Callable[[str], Execution]


class Notebooks:
    """A fake sandbox. A block prints the number of its session, its own number and the program.

    Args:
        answer: A function from a program to its result; `None`: the text above.
    """

    def __init__(self, answer: Answer | None = None) -> None:
        self.answer = answer
        self.sessions: list[Notebook] = []
        self.alone: list[tuple[str, Limits, bool]] = []
        self.closed = 0

    @property
    def open(self) -> list[int]:
        """The numbers of the sessions that are still open."""
        return [notebook.number for notebook in self.sessions if not notebook.closed]

    @property
    def used(self) -> list[Notebook]:
        """The sessions that ran a block."""
        return [notebook for notebook in self.sessions if notebook.blocks]

    def run(self, code: str, limits: Limits, *, display: bool = False) -> Execution:
        self.alone.append((code, limits, display))
        return Execution(Outcome.OK, "alone\n")

    async def run_async(self, code: str, limits: Limits, *, display: bool = False) -> Execution:
        return self.run(code, limits, display=display)

    def session(self, limits: Limits, *, display: bool = False) -> Notebook:
        self.sessions.append(Notebook(self, len(self.sessions), limits, display))
        return self.sessions[-1]

    def close(self) -> None:
        self.closed += 1


class Notebook:
    """A session of `Notebooks`."""

    def __init__(self, sandbox: Notebooks, number: int, limits: Limits, display: bool) -> None:
        self.sandbox, self.number, self.limits, self.display = sandbox, number, limits, display
        self.blocks: list[str] = []
        self.closed = False

    def run(self, code: str) -> Execution:
        assert not self.closed, "a block after the session's end"
        self.blocks.append(code)
        if self.sandbox.answer is not None:
            return self.sandbox.answer(code)
        return Execution(Outcome.OK, f"session {self.number}, block {len(self.blocks)}: {code}\n")

    async def run_async(self, code: str) -> Execution:
        return self.run(code)

    def close(self) -> None:
        self.closed = True
