"""The tables of a report, with figures that are worked out by hand."""

import dataclasses
import itertools

import pytest
from helpers.episodes import ALL, CODE, CUT, DIRECT, GUESS, NAME, RAN, WRONG, episode, with_ids
from helpers.run_folders import an_eval

from retool_env.evaluation.report import tables
from retool_env.evaluation.report.subject import figures_of, read_subjects
from retool_env.metrics.failed_calls import FATES
from retool_env.metrics.figure import Figure
from retool_env.rollout.policy import Usage
from retool_env.transcript import StopReason


@pytest.fixture
def read(tmp_path):
    """A function that reads runs of these episodes as the subjects of a report."""

    numbers = itertools.count()

    def read(*runs, **options):
        paths = [an_eval(tmp_path / str(next(numbers)), some, **options) for some in runs]
        return read_subjects(paths, lambda line: None)

    return read


def row_of(table, name):
    [row] = [row[1:] for row in table if row[0] == name]
    return row


@pytest.mark.parametrize(
    ("figure", "text"),
    [
        (Figure("use/ran", 60, 9, 0.5, 0.4, 0.6, ""), "50.0 % [40.0, 60.0]"),
        (Figure("use/calls", 60, 9, 1.5, 1.0, 2.0, ""), "1.5 [1, 2]"),
        (Figure("use/calls/1", 60, 9, 0.25, 0.2, 0.3, ""), "25.0 % [20.0, 30.0]"),
        (Figure("cost/prompt_tokens", 60, 9, 12345.6, 1.0, 2.0, ""), "12,346 [1, 2]"),
        (Figure("use/ran", 7, 1, 1.0, None, None, ""), "100.0 % (1 problem) †"),
        (Figure("use/ran", 0, 0, None, None, None, ""), "–"),
        (None, "–"),
    ],
)
def test_a_figure_has_its_unit_its_interval_and_a_mark_for_few_cases(figure, text):
    assert tables.value_text(figure) == text


def test_the_flow_counts_each_failed_call_once():
    flow = tables.flow_of(figures_of(ALL))
    assert {kind: sum(fates.values()) for kind, fates in flow.items()} == {
        "runtime_error/nameerror": 6,
        "runtime_error/typeerror": 1,
        "syntax_error/syntaxerror": 1,
        "timeout": 1,
    }
    assert flow["runtime_error/nameerror"]["answered_right"] == 1
    table = tables.flow_table(figures_of(ALL))
    assert table[0] == ["error", "failed calls", *tables.FATE_NAMES.values()]
    assert [row[:2] for row in table[1:3]] == [
        ["all errors", "9"],
        ["NameError", "6"],
    ]
    assert list(tables.FATE_NAMES) == list(FATES)


def test_one_kind_of_error_has_no_row_of_all_errors():
    table = tables.flow_table(figures_of([episode("p", StopReason.ANSWERED, (CODE, NAME), WRONG)]))
    assert [row[0] for row in table] == ["error", "NameError"]
    assert tables.flow_table(figures_of([RAN])) == []


def test_costs_count_tokens_by_author_for_an_episode_and_for_a_right_answer(read):
    some = [with_ids(RAN), with_ids(GUESS)]
    some[0] = dataclasses.replace(
        some[0], spans=tuple(dataclasses.replace(span, seconds=1.5) for span in some[0].spans)
    )
    table = tables.cost_table(read(some))
    # RAN: 18 + 19 characters of the model and 3 of the result; GUESS: 18. Two tokens a character.
    assert row_of(table, "tokens that the model wrote") == ["55", "110"]
    assert row_of(table, "tokens of results") == ["1.5", "3"]
    assert row_of(table, "characters that the model wrote") == ["27.5", "55"]
    assert row_of(table, "seconds of the model") == ["1.5", "3"]
    assert row_of(table, "seconds of the interpreter") == ["0.75", "1.5"]


def test_without_token_ids_or_a_right_answer_the_cost_is_unknown(read):
    table = tables.cost_table(read([GUESS]))
    assert not [row for row in table if row[0].startswith("tokens")]
    assert row_of(table, "characters that the model wrote") == ["18", "–"]
    assert tables.cost_table(read()) == []


def test_a_run_of_which_one_episode_lacks_token_ids_has_no_number_of_tokens(read):
    table = tables.cost_table(
        read(
            [with_ids(RAN), GUESS],
        )
    )
    assert not [row for row in table if row[0].startswith("tokens")]


def test_dollars_stand_beside_tokens(read):
    used = Usage(1, 1_000_000, 0)
    price = {"prompt": 3.0, "completion": 1.0, "cached": None}
    columns = tables.columns_of(read([DIRECT, GUESS], usage=used, price=price))
    table = tables.figure_table(columns, tables.BILL)
    assert row_of(table, "dollars, a right answer")[0].startswith("6 ")


def test_stop_reasons_include_failed_episodes_the_most_frequent_first(read):
    table = tables.stops_table(read(ALL, [CUT]))
    assert table[0] == ["", "1. a/checkpoint", "2. a/checkpoint"]
    assert table[1] == ["answered", "8 (66.7 %)", "0 (0.0 %)"]
    assert row_of(table, "infrastructure failure") == ["1 (8.3 %)", "0 (0.0 %)"]
    assert row_of(table, "character budget") == ["1 (8.3 %)", "1 (100.0 %)"]


def test_the_table_of_the_terminal_has_a_column_for_each_run(read):
    text = tables.main_table(read([RAN, DIRECT], [GUESS]))
    assert "1. a/checkpoint: 2 episodes" in text and "2. a/checkpoint: 1 episode " in text
    assert "| call ran, and right" in text and "† fewer than 50 cases" in text
    assert tables.main_table(read([])) == ""


def test_samples_above_one_have_their_rows_in_order(read):
    names = [name for _, name in tables.sampled_rows(read([RAN] * 4, [RAN] * 2))]
    assert names == ["pass@2", "pass^2", "maj@2", "pass@4", "pass^4", "maj@4"]
    assert tables.sampled_rows(read()) == []


def test_groups_are_shown_only_where_there_are_several(read):
    def of(level):
        problem = dataclasses.replace(
            RAN.problem, id=f"set/{level}", metadata={"level": level, "subject": "algebra"}
        )
        return dataclasses.replace(RAN, problem=problem)

    rows = tables.group_rows(read([of(1), of(5)]))
    assert [name for _, name in rows] == ["level 1", "level 5"]
    assert tables.group_rows(read()) == []


def test_attempts_that_miss_the_form_are_named(read):
    fence = episode("p", StopReason.ANSWERED, "```python\n1\n```" + WRONG)
    [subject] = read([fence])
    assert tables.missed_rows(subject) == [("use/missed/fence", "fence")]


def test_turns_to_mend_an_error_and_accuracy_after_one_have_their_cases(read):
    table = tables.recovery_rows(read(ALL))
    assert [row[0] for row in table] == [
        "turns to mend an error",
        "right, of episodes with an error",
    ]
    assert [row[2] for row in table] == ["3", "7"]
    assert tables.recovery_rows(read()) == []


def test_hidden_characters_of_a_title_do_not_reach_the_terminal(read):
    text = tables.main_table(read([RAN], model="\x1b[31mred"))
    assert "\x1b" not in text and "\\x1b[31mred" in text
