"""The table and the page say what is not shown, and stand alone."""

import json

import pytest

from retool_env.errors import DataError
from retool_env.evaluation.recover import page
from retool_env.evaluation.recover.figures import RESULT_FIELDS
from retool_env.evaluation.recover.page import comparable, read_results, table, write_page

COUNTS = {
    **{"parents": 6, "prefixes": {"fork": 5, "natural": 2}, "without_call": 1},
    **{"not_reproducible": 0, "not_eligible": {"stale": 3, "cut": 1}, "visible": 0},
    "infrastructure_failures": {"dose/0": 2},
}
USED = {"prompt_tokens": 3000, "completion_tokens": 200}
USAGE = {
    "arms": {
        "fork/control": {"episodes": 6, "written": None, "usage": USED, "dollars": 1.5},
        "fork/timeout": {"episodes": 6, "written": None, "usage": USED, "dollars": 0.5},
    },
    **{"all": {"requests": 9}, "dollars": 2.25},
}
TEST = {"kind": "timeout", "problems": 9, "difference": 0.3, "low": 0.1, "high": 0.5}
COMPARED = [
    {"first": 1, "second": 2, "tests": [{**TEST, "detectable": 0.25, "p": 1e-4, "adjusted": 0.04}]}
]


def figure(key, mean, **more):
    bounds = {"low": -0.4, "high": -0.1, "count": 9, "problems": 3, "definition": "Words."}
    return {"key": key, "mean": mean, **bounds, **more}


def results(title="m", **more):
    figures = [
        figure("effect/timeout", -0.25),
        figure("ratio/timeout", 0.5, shown=False, reason="few cases"),
    ]
    return {
        **dict.fromkeys(RESULT_FIELDS, 0),
        **{"schema": 1, "suite": "v0", "suite_hash": "a", "fingerprint": "f", "revision": 4},
        **{"model": {"title": title}, "kinds": ["timeout"], "counts": COUNTS, "figures": figures},
        **{"usage": USAGE, "rules": {"max_calls": 4}, "prompt": "Solve {question}"},
        **more,
    }


def test_the_table_names_hidden_figures_with_their_reason():
    text = table([results()])
    assert "| timeout (explicit) | −25 [−40, −10] | – (a)          |" in text
    assert "not shown (a): ratio/timeout: few cases" in text
    assert "4 pairs of prefix and fault are not eligible" in text
    assert "2 episodes failed by the infrastructure" in text


def test_a_figure_that_one_model_lacks_is_named_in_the_table():
    gain = results(figures=[figure("frequency/gain", 0.5)])
    without = results(figures=[figure("frequency/gain", 0.1, shown=False, reason="few cases")])
    text = table([gain, without, results()])
    assert "| gain by the tool | +50 [−40, −10] | – (a) | –    |" in text


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


def test_other_rules_and_prompts_are_named_and_not_compared():
    one = results()
    session = results(rules={"max_calls": 8, "session": True, "prompt_template": "my.txt"})
    assert comparable([one, results(rules={"max_calls": 4, "session": False})]) == ""  # the default
    words = "differ in max_calls (4, 8), session (false, true): they can't be compared"
    assert words in comparable([one, session, one])
    assert "differ in the prompt: they" in comparable([one, results(prompt="Other {question}")])
    assert words in table([one, session])


def test_the_page_shows_the_rules_and_the_prompt(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "draw", lambda some: {})
    text = write_page([results(), results(rules={"max_calls": 9})], tmp_path).read_text()
    assert "max_calls (4, 9)" in text
    assert "{&quot;max_calls&quot;: 9}" in text and "Solve {question}" in text


def test_a_comparison_without_an_interval_says_so():
    test = {**TEST, "low": None, "high": None, "detectable": None, "p": 1.0, "adjusted": 1.0}
    text = table([results("a"), results("b")], [{"first": 1, "second": 2, "tests": [test]}])
    assert "| +30 (interval unknown) |" in text


def test_the_page_holds_its_pictures_and_escapes_names(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "draw", lambda some: {"heat-map": b"x", "outcomes-1": b"y"})
    text = write_page([results("<b>")], tmp_path / "new").read_text()
    assert "<b>" not in text and "&lt;b&gt;" in text
    assert text.count("data:image/png;base64,") == 2
    assert not any(word in text for word in ("http:", "https:", "<script", "<link", "@import"))
    assert "(a) not shown: few cases" in text
    assert (tmp_path / "new" / "heat-map.png").read_bytes() == b"x"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{}", "is damaged: the field schema is missing"),
        ("null", "is damaged: it holds None"),
        ("[", "is damaged"),
        ('{"schema": 9}', "schema 9 is unknown: a newer"),
        ('{"schema": 1, "model": {}}', "the fields name, suite, .* are missing"),
    ],
)
def test_results_that_cannot_be_read_are_named(text, words, tmp_path):
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(DataError, match=words):
        read_results(tmp_path)
    (tmp_path / "results.json").write_text(json.dumps(results()))
    assert read_results(tmp_path)["suite"] == "v0"


def test_several_models_are_compared_in_the_terminal_on_the_page_and_in_a_file(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(page, "draw", lambda some: {})
    two = [results("a"), results("b")]
    row = "| timeout       | 9        | +30 [+10, +50]        | ±25        | <0.001 | 0.040      |"
    assert "| 1. a − 2. b | " in table(two, COMPARED).replace("1. a − 2. b  ", "1. a − 2. b")
    assert row.split("|")[3] in table(two, COMPARED)
    text = write_page(two, tmp_path, COMPARED).read_text()
    assert "<h3>1. a minus 2. b</h3>" in text and "<td>0.040</td>" in text
    assert json.loads((tmp_path / "comparisons.json").read_text()) == {"pairs": COMPARED}


def test_the_page_asks_a_readers_questions_in_order_and_states_tokens_and_dollars(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(page, "draw", lambda some: {"heat-map": b"x"})
    some = [figure("frequency/gain", 0.5), figure("natural/keep", 0.5)]
    some += [figure(f"{name}/stale", 0.2) for name in ("effect", "detection", "calls_more")]
    text = write_page([results(figures=some)], tmp_path).read_text()
    order = ("does it pay?", "faults hurt?", "notice", "own errors", "calls and tokens", "run cost")
    places = [text.index(words) for words in (*order, "What is not shown")]
    assert places == sorted(places)
    assert "<td>12</td><td>400</td><td>6,000</td><td>$2.00</td>" in text
    assert "also of lost episodes: $2.25" in text
