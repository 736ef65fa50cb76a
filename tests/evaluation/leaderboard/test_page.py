"""The tables show ranks as intervals, mark unchecked runs, and escape what others wrote."""

import json
from html.parser import HTMLParser

import pytest

from retool_env.errors import SettingsError
from retool_env.evaluation.leaderboard.entries import LeftOutRun, read_entries, tables_of
from retool_env.evaluation.leaderboard.page import document, ranked, terminal, to_json, write
from retool_env.evaluation.recover.submission import Finding
from retool_env.execution import Outcome


def tables(board, by="accuracy", check=None):
    entries, left_out = read_entries(board, check)
    return [ranked(table, by) for table in tables_of(entries)], left_out


def ranks(one):
    return {row.title: row.rank_text for row in one.rows}


def test_models_that_no_test_tells_apart_share_a_rank(made_board):
    [one], _ = tables(made_board)
    assert ranks(one) == {"brittle": "1–2", "strong": "1–2", "weak": "3"}
    [one], _ = tables(made_board, "faults")
    assert ranks(one) == {"strong": "1", "brittle": "2–3", "weak": "2–3"}


def test_a_hidden_figure_is_a_dash_with_its_reason_below(made_board):
    made, left_out = tables(made_board)
    text = document(made, left_out).markdown()
    assert "| – (a) " in text and "(a) not shown: the two arms differ at fewer than 5" in text
    assert "0.00 [0.00, 0.45] n 16 (8)" in text  # the recovery ratio of the brittle agent
    assert "unchecked" in text and "The check can't show that the named model wrote" in text


def test_runs_of_other_settings_have_no_common_rank(board):
    path = board / "strong/recover.json"
    path.write_text(path.read_text().replace('"revision": 4', '"revision": 3'))
    made, left_out = tables(board)
    assert [ranks(one) for one in made] == [{"brittle": "1", "weak": "2"}, {"strong": "1"}]
    text = document(made, left_out).html()
    assert "no rank goes across tables" in text and "revision: 3, not 4" in text
    assert "not comparable with table 1: revision: 3, not 4" in terminal(made, left_out)


def test_a_run_that_fails_a_check_has_no_rank_and_the_others_keep_theirs(made_board):
    def check(folder, record):
        return [Finding("verdicts", folder.name != "strong", "8 verdicts, 8 differ")]

    [one], left_out = tables(made_board, check=check)
    assert ranks(one) == {"brittle": "1", "weak": "2", "strong": "–"}
    text = document([one], left_out).markdown()
    assert "FAILED: verdicts" in text and "passed" in text and "8 verdicts, 8 differ" in text


@pytest.mark.parametrize("name", ["whole", "suite"])
def test_a_quick_run_keeps_its_rank_and_another_suite_does_not(made_board, name):
    def check(folder, record):
        return [Finding(name, False, "why")]

    [one], _ = tables(made_board, check=check)
    assert ("–" in ranks(one).values()) == (name == "suite")


class Page(HTMLParser):
    """The elements and attributes of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag, attrs) -> None:
        self.found |= {tag, *(name for name, _ in attrs)}


def test_names_of_others_reach_neither_the_page_nor_the_terminal_raw(board):
    path = board / "strong/recover.json"
    record = json.loads(path.read_text())
    evil = "<img src=x onerror=alert(1)>|\x1b[31m\u202e\n# heading"
    record["model"]["name"] = record["sampling"]["way"] = evil
    path.write_text(json.dumps(record))
    made, left_out = tables(board)
    left_out = [*left_out, LeftOutRun("\x1b[2J", "<script>\x1b")]
    page = document(made, left_out)
    found = Page(page.html()).found
    assert not found & {"img", "script", "onerror"}
    for text in (page.html(), page.markdown(), terminal(made, left_out)):
        assert not set(text) & {"\x1b", "\u202e"}
    rows = [line for line in page.markdown().splitlines() if "onerror" in line]
    assert rows and all(r"\|" in line and line.startswith("| ") for line in rows)


def test_equal_names_are_told_apart_by_their_folders(board):
    (board / "strong").rename(board / "more" / "strong")
    path = board / "more/weak/recover.json"
    path.write_text(path.read_text().replace("org/weak", "org/strong"))
    [one], _ = tables(board)
    assert set(ranks(one)) == {"strong (more/strong)", "brittle", "strong (more/weak)"}


def test_the_files_hold_the_same_ranks_and_are_written_anew(board):
    made, left_out = tables(board)
    paths = write(made, left_out, board / "out")
    assert [path.name for path in paths] == [f"leaderboard.{end}" for end in ("html", "md", "json")]
    values = json.loads(paths[2].read_text())
    assert values == json.loads(json.dumps(to_json(made, left_out))) and values["schema"] == 1
    [table] = values["tables"]
    assert [row["rank"] for row in table["rows"]] == [[1, 2], [1, 2], [3, 3]]
    figure = table["rows"][0]["figures"]["accuracy"]
    assert figure["count"] == figure["problems"] == 8 and figure["low"] < figure["mean"]
    assert write(made, left_out, board / "out") == paths


def test_an_invented_result_is_counted(board):
    """The model writes the output of a program itself."""
    path = board / "strong/episodes.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        if (line["protocol"], line["arm"]) == ("dose", "0"):
            span = line["transcript"]["spans"][1]
            assert span["author"] == "model"
            span["text"] = f"<interpreter>{Outcome.OK}</interpreter>{span['text']}"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    entries, _ = read_entries(board)
    found = {e.record.model.title: e.measures.figures["invented"].mean for e in entries}
    assert found == {"strong": 1.0, "brittle": 0.0, "weak": 0.0}


def test_a_file_of_the_users_is_not_overwritten(tmp_path):
    (tmp_path / "leaderboard.md").write_text("mine")
    with pytest.raises(SettingsError, match=r"leaderboard\.md exists already"):
        write([], [], tmp_path)
    (tmp_path / "leaderboard.md").unlink()
    assert write([], [], tmp_path) == write([], [], tmp_path)
