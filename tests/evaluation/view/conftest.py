"""A browser for the tests of the page, and runs that are served."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from helpers.browser import WIDE, Tab, open_browser
from helpers.page_runs import long_transcripts
from helpers.viewed_runs import a_recover, hostile

from retool_env.evaluation.runs import open_run
from retool_env.evaluation.view.api import Api
from retool_env.evaluation.view.index import Index
from retool_env.evaluation.view.server import ViewServer
from retool_env.transcript import write_transcripts


@pytest.fixture(scope="module")
def browser() -> Iterator:
    """The browser of a file. While it is open, its driver's event loop runs in this thread."""
    with open_browser() as opened:
        yield opened


@contextmanager
def _serving(*paths: Path) -> Iterator[ViewServer]:
    indexes = [Index(open_run(path), cache=False) for path in paths]
    for index in indexes:
        index.refresh()
    with ViewServer(Api(indexes)) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(scope="session")
def served() -> Iterator:
    """A function that serves runs and returns the server."""
    with ExitStack() as stack:
        yield lambda *paths: stack.enter_context(_serving(*paths))


@pytest.fixture(scope="session")
def recover_server(served, tmp_path_factory):
    """A server of a benchmark of recovery: one parent with four forks."""
    return served(a_recover(tmp_path_factory.mktemp("runs") / "recover"))


@pytest.fixture(scope="session")
def hostile_server(served, tmp_path_factory):
    """A server of a file of hostile and of long transcripts."""
    path = tmp_path_factory.mktemp("runs") / "hostile.jsonl"
    write_transcripts(path, [hostile(), *long_transcripts()])
    return served(path)


@pytest.fixture
def tab(browser) -> Iterator:
    """A function that opens a tab with a page; the tab is checked by its guard at the end."""
    tabs = []

    def tab(address: str, size=WIDE, **options) -> Tab:
        context = browser.new_context(viewport=size, **options)
        tabs.append(Tab(context.new_page(), address))
        return tabs[-1]

    yield tab
    for one in tabs:
        one.page.context.close()
        one.guard.check()
