"""The cells of the tables, and the reasons for dashes."""

import pytest

from retool_env.evaluation.recover.sections import (
    NO_CASE,
    SECTIONS,
    Notes,
    by_key,
    failures_table,
    hidden,
    kinds_table,
    rows_table,
    value_text,
)


def figure(key, mean=0.5, **more):
    bounds = {"low": 0.25, "high": 0.75, "count": 9, "problems": 3, "prefixes": 4}
    return {"key": key, "mean": mean, **bounds, "detectable": 0.3, **more}


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (figure("control/cut"), "50 % [25, 75]"),
        (figure("effect/cut", -0.004, low=-0.5), "0 [−50, +75]"),
        (figure("natural/mend"), "+50 [+25, +75]"),
        (figure("natural/mended"), "50 % [25, 75]"),
        (figure("detection/cut"), "50 % [25, 75]"),
        (figure("detection/cut/net"), "+50 [+25, +75]"),
        (figure("dose/0.25/calls"), "0.50 [0.25, 0.75]"),
        (figure("ratio/cut", high=None), "0.50 [0.25, ∞]"),
        (figure("control/cut", low=None, high=None, problems=1), "50 % (1 problem)"),
    ],
)
def test_a_figure_is_a_share_points_or_a_number(given, text):
    assert value_text(given) == text


def test_dashes_name_each_reason_once():
    notes = Notes()
    few = {"shown": False, "reason": "few"}
    figures = [by_key({"figures": [figure("frequency/gain", **few)]})] * 2
    rows = rows_table(SECTIONS[0], figures, ["a", "b"], notes)
    assert rows == [["", "a", "b"], ["gain by the tool", "– (a)", "– (a)"]]
    assert notes.dash("other") == "– (b)" and notes.reasons == {"few": "a", "other": "b"}
    assert rows_table(SECTIONS[4], figures, ["a", "b"], notes) == []


def test_kinds_without_an_eligible_prefix_are_named_apart():
    columns = (("effect", "effect"), ("prefixes", "n"), ("detectable", "d"), ("net", "net"))
    some = [
        figure("effect/cut"),
        figure("effect/gone", detectable=1.2),
        figure("effect/stale", None, shown=False, reason=NO_CASE),
    ]
    table, absent = kinds_table(columns, by_key({"figures": some}), Notes())
    assert table == [
        ["fault", "effect", "n", "d"],
        ["gone* (explicit)", "+50 [+25, +75]", "4 (3)", "> 100"],
        ["cut (silent)", "+50 [+25, +75]", "4 (3)", "±30"],
    ]
    assert absent == ["stale"]


def test_failures_are_bounded_and_hidden_figures_grouped():
    some = by_key(
        {
            "figures": [
                figure("effect/cut", lowest=-0.1, highest=0.9, failed=2),
                figure("ratio/cut", shown=False, reason="few"),
                figure("net/cut", None, shown=False, reason="few"),
            ]
        }
    )
    assert failures_table(some)[1:] == [["effect/cut", "2", "+50 [+25, +75]", "−10", "+90"]]
    assert hidden(some) == {"few": ["ratio/cut", "net/cut"]}
