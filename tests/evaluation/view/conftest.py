"""A browser for the tests of the page, and runs that are served."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from helpers.browser import WIDE, Tab, open_browser
from helpers.small_view_server import serve_runs
from helpers.viewed_runs import hostile_transcripts, make_recover_run

from retool_env.transcript import write_transcripts


@pytest.fixture(scope="session")
def browser() -> Iterator:
    with open_browser() as opened:
        yield opened


@pytest.fixture(scope="session")
def recover_run(tmp_path_factory, sandbox) -> Path:
    """The folder of a benchmark of recovery."""
    return make_recover_run(tmp_path_factory.mktemp("recover"), sandbox)


@pytest.fixture(scope="session")
def hostile_run(tmp_path_factory) -> Path:
    """A file of hostile transcripts."""
    path = tmp_path_factory.mktemp("hostile") / "hostile.jsonl"
    write_transcripts(path, hostile_transcripts())
    return path


@pytest.fixture(scope="session")
def served() -> Iterator:
    """A function that serves runs and returns the server, whose `address` is the page's."""
    with ExitStack() as stack:
        yield lambda *paths: stack.enter_context(serve_runs(paths))


@pytest.fixture(scope="session")
def recover_server(served, recover_run):
    return served(recover_run)


@pytest.fixture(scope="session")
def hostile_server(served, hostile_run):
    return served(hostile_run)


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
