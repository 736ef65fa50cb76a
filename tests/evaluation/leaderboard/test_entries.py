"""Runs are found, grouped by their settings, and no damaged run hides another."""

import json
import shutil

import pytest
from helpers.scripted_agents import Agent, TextAgent

from retool_env.cli import main
from retool_env.errors import DataError, MissingFile
from retool_env.evaluation.leaderboard.entries import find_runs, read_entries, tables_of
from retool_env.rollout import named


def edit(folder, name="recover.json", **values):
    path = folder / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def titles(board):
    entries, left_out = read_entries(board)
    tables = [sorted(entry.name for entry in table.entries) for table in tables_of(entries)]
    return tables, {run.name: run.reason for run in left_out}


def test_runs_lie_one_or_two_levels_below_and_a_run_itself_is_a_board(made_board):
    names = [str(path.relative_to(made_board)) for path in find_runs(made_board)]
    assert names == ["more/brittle", "more/weak", "strong"]
    assert find_runs(made_board / "strong") == [made_board / "strong"]


def test_a_folder_without_runs_is_named(tmp_path):
    with pytest.raises(DataError, match=r"holds no run: neither recover\.json nor eval\.json"):
        find_runs(tmp_path)
    with pytest.raises(MissingFile, match="nowhere was not found"):
        find_runs(tmp_path / "nowhere")


def test_equal_settings_share_a_table(made_board):
    assert titles(made_board) == ([["more/brittle", "more/weak", "strong"]], {})


@pytest.mark.parametrize(
    ("values", "difference"),
    [
        ({"suite_hash": "4567"}, "suite_hash: 4567, not 0123"),
        ({"quick": True}, "quick: True, not False"),
        ({"fingerprint": "ab"}, "fingerprint: ab, not "),
        ({"revision": 3}, "revision: 3, not 4"),
        ({"prompt": "Think. {query}"}, "prompt: Think. {query}, not "),
        ({"rules": {"max_calls": 3}}, "rules.max_calls: 3, not 8"),
        ({"kinds": ["timeout"]}, "kinds: ['timeout'], not "),
    ],
)
def test_other_settings_have_a_table_of_their_own_which_names_each(board, values, difference):
    edit(board / "strong", **values)
    entries, left_out = read_entries(board)
    first, second = tables_of(entries)
    assert [entry.name for entry in second.entries] == ["strong"] and not left_out
    [named_difference] = second.differences(first)
    assert named_difference.startswith(difference)


def test_the_sampling_the_seed_and_the_size_may_differ(board):
    edit(board / "strong", sampling={"temperature": 0.2}, seed=9, k=7)
    assert len(titles(board)[0]) == 1


def test_a_setting_that_is_newer_than_a_record_had_its_default(board):
    rules = json.loads((board / "strong/recover.json").read_text())["rules"]
    edit(board / "strong", rules={n: v for n, v in rules.items() if n != "announce_calls"})
    assert len(titles(board)[0]) == 1


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("recover.json", "{", "recover.json is damaged"),
        ("recover.json", "[]", "recover.json is damaged"),
        ("recover.json", "\x00" * 9, "recover.json is damaged"),
        ("episodes.jsonl", "{}\n", "line 1 is not an episode"),
        ("left_out.jsonl", "1\n", "line 1 is damaged"),
    ],
)
def test_a_damaged_run_is_left_out_and_hides_no_other(board, name, text, reason):
    (board / "more/weak" / name).write_text(text)
    tables, left_out = titles(board)
    assert tables == [["more/brittle", "strong"]]
    assert list(left_out) == ["more/weak"] and reason in left_out["more/weak"]


@pytest.mark.parametrize(
    "values",
    [{"kinds": ["no such kind"]}, {"kinds": 5}, {"price": {"prompt": "x"}}, {"sampling": 3}],
)
def test_values_of_any_type_in_a_record_hide_no_other_run(board, values):
    edit(board / "strong", **values)
    tables, left_out = titles(board)
    assert ["more/brittle", "more/weak"] in tables
    assert list(left_out) in ([], ["strong"])


def test_an_unfinished_run_and_a_run_without_episodes_are_left_out(board):
    edit(board / "strong", status="stopped")
    (board / "more/weak/episodes.jsonl").unlink()
    tables, left_out = titles(board)
    assert tables == [["more/brittle"]]
    assert left_out["strong"] == "the run is stopped: finish it with --resume"
    assert left_out["more/weak"] == "the run has no episode without faults"


def test_evaluations_have_a_table_without_figures_of_faults(board, monkeypatch, sandbox):
    monkeypatch.setitem(named.POLICIES, "openai", lambda model, **_: TextAgent(Agent()))
    command = ["eval", "--env", "ReTool-Arithmetic-v0", "--model", "m", "--api", "http://h/v1"]
    assert main([*command, "--problems", "2", "--out", str(board / "evaluation")]) == 0
    entries, left_out = read_entries(board)
    _, table = tables_of(entries)
    assert table.title == "ReTool-Arithmetic-v0, without faults" and not left_out
    figures = table.entries[0].measures.figures
    assert figures["accuracy"].mean == 1.0 and figures["ran"].mean == 1.0
    assert figures["effect"].reason == "`retool eval` runs no faults and no arm without the tool"


def test_a_link_to_a_folder_is_a_run_and_a_file_is_not(board, made_board):
    shutil.rmtree(board / "strong")
    (board / "linked").symlink_to(made_board / "strong")
    (board / "note.txt").write_text("runs")
    assert titles(board)[0] == [["linked", "more/brittle", "more/weak"]]
