"""`retool view`: the episodes of recorded runs, in a browser, in files or in a terminal."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from retool_env.errors import DataError, SettingsError

if TYPE_CHECKING:
    from retool_env.evaluation.runs import Run
    from retool_env.evaluation.view.index import Index


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command's options."""
    parser = commands.add_parser(
        "view", help="the episodes of recorded runs, in a browser or a file", allow_abbrev=False
    )
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="the folder of a run (eval, recover, training), RUN@STEP, or a file of episodes; two "
        "runs are compared",
    )
    parser.add_argument(
        "--html",
        type=Path,
        metavar="FILE",
        help="write the page with its data into a file, which needs no server",
    )
    parser.add_argument("--tui", action="store_true", help="show the episodes in this terminal")
    parser.add_argument("--port", type=int, default=0, help="port of the page (a free port)")
    parser.add_argument("--no-browser", action="store_true", help="do not open a browser")
    parser.add_argument(
        "--query",
        default="",
        metavar="Q",
        help="a filter, such as 'right:no error:timeout'; with --html other episodes are left out",
    )
    parser.add_argument("--episode", metavar="ADDRESS", help="the episode to show first")


def run(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    """`retool view`."""
    from retool_env.evaluation.runs import examples, open_run
    from retool_env.evaluation.view.filters import Filter

    Filter.parse(arguments.query)  # a fault is told before the records are read
    if arguments.html is not None and arguments.tui:
        raise SettingsError("--html and --tui: choose one of them")
    indexes = [_read(open_run(path)) for path in arguments.runs]
    if arguments.episode is not None and not any(i.has(arguments.episode) for i in indexes):
        known = examples(arguments.episode, (row["address"] for i in indexes for row in i.rows()))
        raise SettingsError(f"no run has an --episode {arguments.episode!r:.200}: {known}")
    if arguments.html is not None:
        return _write(indexes, arguments.html, arguments.query)
    if arguments.tui:
        from retool_env.evaluation.view.terminal import show

        show(indexes, arguments.query, arguments.episode)
        return 0
    return _serve(indexes, arguments)


def _read(run: Run) -> Index:
    """The index of a run, read; progress is shown in a terminal if it takes long."""
    from retool_env.evaluation.view.index import Index

    progress = _Progress(f"reading {run.path}")
    index = Index(run, progress)
    index.refresh()
    index.close()
    progress.end()
    for line in index.damaged[:3]:
        print(f"left out: {line}", file=sys.stderr)
    if len(index.damaged) > 3:
        print(f"left out: {len(index.damaged) - 3} more lines", file=sys.stderr)
    return index


class _Progress:
    """A line of progress on a terminal, overwritten at each per cent."""

    def __init__(self, words: str) -> None:
        self._words = words
        self._shown = -1

    def __call__(self, done: int, total: int) -> None:
        percent = 100 * done // max(total, 1)
        if sys.stderr.isatty() and percent > self._shown:
            self._shown = percent
            print(f"\r{self._words}: {percent} %", end="", file=sys.stderr, flush=True)

    def end(self) -> None:
        """Ends the line."""
        if self._shown >= 0:
            print(file=sys.stderr)


def _write(indexes: Sequence[Index], path: Path, query: str) -> int:
    from retool_env.evaluation.view.static import MOST_PAGE, matching, write_static

    kept = matching(indexes, query)
    number = sum(map(len, kept))
    if not any(index.rows() for index in indexes):
        paths = ", ".join(str(index.run.path) for index in indexes)
        raise DataError(f"{paths}: no episode was found that can be read, so no page is written")
    if not number:
        raise SettingsError(f"--query {query!r:.200} keeps none of the episodes")
    progress = _Progress(f"writing {path}")
    files = write_static([index.run for index in indexes], path, kept, progress)
    progress.end()
    for file in files:
        print(f"{file}: {file.stat().st_size / 1e6:.1f} MB")
    if len(files) > 1:
        print(
            f"{number} episodes are more than {MOST_PAGE / 1e6:.0f} MB: keep the {len(files)} "
            "files in one folder, and open the first"
        )
    return 0


def _serve(indexes: Sequence[Index], arguments: argparse.Namespace) -> int:
    from retool_env.evaluation.view.api import Api
    from retool_env.evaluation.view.server import ViewServer

    with ViewServer(Api(indexes), arguments.port) as server:
        address = server.address + _fragment(indexes, arguments)
        for index in indexes:
            print(f"{len(index.rows())} episodes of {index.run.path}")
        print(f"the page: {address}\nCtrl-C ends the viewer", flush=True)
        if not arguments.no_browser and _has_display():
            import webbrowser

            webbrowser.open(address)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print("\nthe viewer has ended")
    for index in indexes:
        index.close()
    return 0


def _fragment(indexes: Sequence[Index], arguments: argparse.Namespace) -> str:
    """The state of the page at its opening."""
    from urllib.parse import quote

    from retool_env.evaluation.view.static import link

    query = f"q={quote(arguments.query, safe='')}" if arguments.query else ""
    if arguments.episode is None:
        return f"#run=0&{query}" if query else ""
    number = next(n for n, index in enumerate(indexes) if index.has(arguments.episode))
    return link(number, arguments.episode) + (f"&{query}" if query else "")


def _has_display() -> bool:
    """Whether a browser would open on this machine's screen."""
    shown = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    return sys.platform == "darwin" or bool(shown)
