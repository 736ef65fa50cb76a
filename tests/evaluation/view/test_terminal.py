"""The viewer in a terminal, by its keys."""

import asyncio
import json
import sys

import pytest
from helpers.run_folders import fill
from helpers.viewed_runs import a_recover, an_eval, append, evaluated, hostile

from retool_env.errors import MissingPackage
from retool_env.evaluation.records import EpisodeRecord
from retool_env.evaluation.runs import open_run
from retool_env.evaluation.view.index import Index

pytest.importorskip("textual", reason="pip install 'retool-env[report]'")
from textual.widgets import DataTable, Input, Static

from retool_env.evaluation.view import terminal
from retool_env.evaluation.view.terminal import Pane, Viewer


def indexes_of(*folders):
    indexes = [Index(open_run(folder), cache=False) for folder in folders]
    for index in indexes:
        index.refresh()
    return indexes


def viewed(*steps, runs, query="", episode=None):
    """Starts the viewer once, and goes through steps: keys, and a function of the state after."""

    async def run():
        app = Viewer(indexes_of(*runs), query, episode)
        found = []
        async with app.run_test(size=(120, 40)) as pilot:
            await settled(app, pilot)
            for keys, state in steps:
                for key in keys:
                    await pilot.press(key)
                    await settled(app, pilot)
                value = state(app)
                found.append(await value if asyncio.iscoroutine(value) else value)
        return found

    return asyncio.run(run())


async def settled(app, pilot):
    await app.workers.wait_for_complete()
    await pilot.pause()


def listed(app):
    table = app.query_one("#episodes", DataTable)
    return [" ".join(cell.plain for cell in table.get_row_at(n)) for n in range(table.row_count)]


def text_of(app, pane="first"):
    blocks = app.query_one(f"#{pane}", Pane).query(Static)
    return "\n".join(str(block.content) for block in blocks)


def matches(app):
    return str(app.query_one("#matches", Static).content)


def second(app):
    pane = app.query_one("#second", Pane)
    return pane.display and pane.shown


def test_an_episode_is_found_by_a_filter_opened_and_left(tmp_path):
    words = "the record holds no tokens"
    rows, second_row, tokens, without, first_row, kept, left = viewed(
        ([], listed),
        (["j", "enter"], text_of),
        (["t"], text_of),
        (["t"], text_of),
        (["k", "enter"], text_of),
        (
            ["slash", *"right", "colon", *"yes", "enter"],
            lambda app: (listed(app), matches(app), app.focused.id),
        ),
        (["escape"], text_of),
        runs=[an_eval(tmp_path / "run")],
    )
    assert rows == ["wrong 1 p/1/0", "right 1 p/1/1"]
    assert "p/1/1\nright" in second_row and "p/1/0\nwrong" in first_row
    assert words in tokens and words not in without
    assert kept == (["right 1 p/1/1"], "1 of 2 episodes", "episodes")
    assert left == ""


def test_a_wrong_filter_is_named_and_letters_in_the_filter_are_no_keys(tmp_path):
    first, (rows, words), written, helped, hidden, ended = viewed(
        ([], listed),
        (["slash", *"jq", "colon", *"s", "enter"], lambda app: (listed(app), matches(app))),
        (["slash"], lambda app: app.query_one("#query", Input).value),
        (["escape", "question_mark"], lambda app: app.query_one("#help").display),
        (["question_mark"], lambda app: app.query_one("#help").display),
        (["q"], lambda app: app.is_running),
        runs=[an_eval(tmp_path / "run")],
        query="right:no",
    )
    assert first == rows == ["wrong 1 p/1/0"] and "jq" in words and "of the filter" in words
    assert written == "right:nojq:s"[-len(written) :] and helped and not hidden and not ended


def test_n_and_p_go_from_failed_call_to_failed_call(tmp_path):
    def marked(app):
        return [str(block.content) for block in app.query(".marked")]

    folder = a_recover(tmp_path / "run")
    none, after, before = viewed(
        ([], marked),
        (["n"], marked),
        (["p"], marked),
        runs=[folder],
        episode="fork/timeout/p/0.1/0",
    )
    assert none == [] and after == before and after[0].startswith("call 1: timeout")
    assert viewed((["n"], marked), runs=[folder], episode="dose/0/p/0") == [[]]


def test_s_shows_the_same_episode_of_the_other_run(tmp_path):
    runs = [an_eval(tmp_path / name) for name in ("one", "other")]
    found = viewed((["j", "enter", "s"], second), (["s"], second), runs=runs)
    assert found == [(1, "p/1/1"), False]


def test_s_shows_the_marked_episode_where_one_run_is_open(tmp_path):
    found = viewed(
        (["enter", "s"], second),
        (["j", "s"], second),
        (["escape"], second),
        runs=[an_eval(tmp_path / "run")],
    )
    assert found == [False, (0, "p/1/1"), False]


def test_a_run_that_goes_on_gains_rows_and_the_cursor_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(terminal, "POLL_SECONDS", 0.05)
    folder = an_eval(tmp_path / "run", status="running")

    async def grown(app):
        append(folder / "episodes.jsonl", evaluated(2))
        for _ in range(200):
            await asyncio.sleep(0.05)
            if len(listed(app)) == 3:
                return app.query_one("#episodes", DataTable).cursor_row
        return None

    assert viewed((["j"], grown), runs=[folder]) == [1]


def test_hostile_texts_reach_no_screen_raw(tmp_path):
    """The rendered screen holds neither terminal codes of the episode nor marks of direction."""
    folder = an_eval(tmp_path / "run")
    records = [EpisodeRecord("m", "[red]h\x1b[31m\u202e", 0, 0, hostile())]
    fill(folder / "episodes.jsonl", records)

    def screen(app):
        strips = app.screen._compositor.render_strips()
        return "\n".join(segment.text for strip in strips for segment in strip)

    [text] = viewed((["enter"], screen), runs=[folder])
    assert "\x1b" not in text and "\u202e" not in text
    assert r"\x1b[31m" in text and "[red]h" in text


def test_an_episode_that_can_not_be_read_is_named_in_its_place(tmp_path):
    folder = an_eval(tmp_path / "run")

    async def broken(app):
        (folder / "episodes.jsonl").write_text("{}\n" * 9)
        await app._open(app.query_one("#first", Pane), (0, "p/1/1"))
        return text_of(app)

    [text] = viewed(([], broken), runs=[folder])
    assert "episodes.jsonl" in text


@pytest.mark.parametrize("package", ["textual", "rich.text"])
def test_without_a_package_the_extra_is_named(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    for name in ("terminal", "terminal_text"):
        monkeypatch.delitem(sys.modules, f"retool_env.evaluation.view.{name}")
    with pytest.raises(MissingPackage, match=r"retool-env\[report\]"):
        __import__("retool_env.evaluation.view.terminal")


def test_show_runs_the_viewer_and_writes_the_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(Viewer, "run", lambda self: None)
    folder = an_eval(tmp_path / "run")
    index = Index(open_run(folder))
    index.refresh()
    terminal.show([index])
    assert json.loads((folder / ".view-index.json").read_text())["version"]
