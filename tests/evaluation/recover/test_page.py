"""The table and the page say what is not shown, and stand alone."""

import json

import pytest

from retool_env.errors import DataError
from retool_env.evaluation.recover import page
from retool_env.evaluation.recover.page import comparable, read_results, table, write_page

COUNTS = {
    **{"parents": 6, "prefixes": {"fork": 5, "natural": 2}, "without_call": 1},
    **{"not_reproducible": 0, "not_eligible": {"stale": 3, "cut": 1}, "visible": 0},
    "infrastructure_failures": {"dose/0": 2},
}


def figure(key, mean, **more):
    bounds = {"low": None, "high": None, "count": 9, "problems": 3, "definition": "Words."}
    return {"key": key, "mean": mean, **bounds, **more}


def results(title="m", **more):
    figures = [
        figure("effect/timeout", -0.25),
        figure("ratio/timeout", 0.5, shown=False, reason="few cases"),
    ]
    names = ("quick", "env", "k", "m", "samples", "seed", "protocols", "sampling", "part")
    return {
        **dict.fromkeys(names, 0),
        **{"schema": 1, "suite": "v0", "suite_hash": "a", "fingerprint": "f", "revision": 4},
        **{"model": {"title": title}, "kinds": ["timeout"], "counts": COUNTS, "figures": figures},
        **more,
    }


def test_the_table_names_hidden_figures_with_their_reason():
    text = table([results()])
    assert "| timeout: effect | -0.250 [–, –] |" in text
    assert "timeout: recovery" not in text  # no model has it
    assert "not shown: ratio/timeout: few cases" in text
    assert "4 pairs of prefix and fault are not eligible, 2 episodes failed" in text


def test_a_figure_that_one_model_lacks_is_named_in_the_table():
    without = results(figures=[figure("effect/timeout", None, shown=False, reason="few cases")])
    assert "| timeout: effect | -0.250 [–, –] | not shown |" in table([results(), without])


def test_of_many_hidden_figures_the_terminal_names_a_few():
    hidden = [figure(f"retries/{n}", None, shown=False, reason="few cases") for n in range(10)]
    assert "retries/7 and 2 more: few cases" in table([results(figures=hidden)])


@pytest.mark.parametrize("name", ["suite_hash", "fingerprint", "revision"])
def test_other_problems_or_revisions_are_not_compared(name):
    assert comparable([results(), results()]) == ""
    other = results(**{name: "b"})
    assert f"these folders differ in {name}" in comparable([results(), other])
    assert comparable([results(), other]) in table([results(), other])


def test_runs_with_fewer_kinds_of_faults_are_told_apart():
    assert "kinds of faults" in comparable([results(), {**results(), "kinds": []}])


def test_the_page_holds_its_pictures_and_escapes_names(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "draw", lambda some: {"heat-map": b"x", "outcomes-1": b"y"})
    text = write_page([results("<b>")], tmp_path / "new").read_text()
    assert "<b>" not in text and "&lt;b&gt;" in text
    assert text.count("data:image/png;base64,") == 2
    assert not any(word in text for word in ("http", "<script", "<link", "@import"))
    assert "not shown: few cases" in text
    assert (tmp_path / "new" / "heat-map.png").read_bytes() == b"x"


@pytest.mark.parametrize(
    ("text", "words"), [("{}", "is damaged"), ("[", "is damaged"), ('{"schema": 9}', "schema 9")]
)
def test_results_that_cannot_be_read_are_named(text, words, tmp_path):
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(DataError, match=words):
        read_results(tmp_path)
    (tmp_path / "results.json").write_text(json.dumps(results()))
    assert read_results(tmp_path)["suite"] == "v0"
