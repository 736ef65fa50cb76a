"""The text of a program's result: cuts, errors and tracebacks."""

import dataclasses
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retool_env.protocol.result import cut_output, cut_text, hidden_part, is_empty_program
from retool_env.protocol.tags import render_result
from retool_env.sandbox import Execution, Outcome


def test_empty_programs():
    assert is_empty_program("") and is_empty_program(" \n# only a comment\n\n")
    assert not is_empty_program("pass") and not is_empty_program("# a\nprint(1)")


@given(st.text(), st.integers(1, 50), st.sampled_from(["head", "tail", "middle"]))
def test_cutting_keeps_exactly_the_stated_characters(text, limit, where):
    shown = cut_text(text, limit, where)
    if len(text) <= limit:
        assert shown == text
        return
    notice = f"[... {len(text) - limit} characters cut ...]"
    head, found, tail = shown.partition(notice)
    assert found
    kept_head = head.removesuffix("\n") if where != "head" else head
    kept_tail = tail.removeprefix("\n") if where != "tail" else tail
    sizes = {"head": (0, limit), "tail": (limit, 0), "middle": (limit - limit // 2, limit // 2)}[
        where
    ]
    assert text.startswith(text[: sizes[0]]) and shown.startswith(text[: sizes[0]])
    assert shown.endswith(text[len(text) - sizes[1] :])
    assert len(kept_head) + len(kept_tail) <= limit + 1


def test_the_side_that_is_cut_is_the_side_that_is_lost():
    text = "a" * 10 + "b" * 10
    assert "a" not in cut_text(text, 10, "head").replace("characters", "")
    assert "b" not in cut_text(text, 10, "tail")
    middle = cut_text("A" + "x" * 100 + "Z", 10, "middle")
    assert middle[0] == "A" and middle[-1] == "Z"


def test_the_paper_keeps_200_and_200():
    output = "h" * 200 + "-" * 1000 + "t" * 200
    shown = render_result(Execution(Outcome.OK, output), 400, "middle")
    assert shown.count("h") >= 200 and "t" * 200 in shown and "-" not in shown


def test_results_are_rendered_as_the_papers_evaluation_does():
    assert (
        render_result(Execution(Outcome.OK, "42\n"), 400)
        == "\n<interpreter>\n42\n</interpreter>\n\n"
    )
    assert render_result(Execution(Outcome.OK, ""), 400) == "\n<interpreter>\n</interpreter>\n\n"


def test_an_error_keeps_the_output_before_it_and_is_never_cut_away():
    failed = Execution(Outcome.RUNTIME_ERROR, "x" * 1000, "ValueError: no")
    shown = render_result(failed, 100, "tail")
    assert "ValueError: no\n</interpreter>" in shown and shown.count("x") >= 80


FRAMES = 'Traceback (most recent call last):\n  File "<program>", line 9, in <module>\n    f(0)\n'
INNER = '  File "<program>", line 2, in f\n    return 1 / x\n'
LAST = "ZeroDivisionError: division by zero"
RAISED = Execution(Outcome.RUNTIME_ERROR, "before\n", LAST, FRAMES + INNER + LAST)


def test_an_error_is_shown_as_a_traceback_or_by_its_last_line():
    whole = f"\n<interpreter>\nbefore\n{FRAMES}{INNER}{LAST}\n</interpreter>\n\n"
    assert render_result(RAISED, 400) == render_result(RAISED, 400, errors="traceback") == whole
    short = f"\n<interpreter>\nbefore\n{LAST}\n</interpreter>\n\n"
    assert render_result(RAISED, 400, errors="last_line") == short
    for errors in ("traceback", "last_line"):  # an error without a traceback is one line in both
        late = Execution(Outcome.TIMEOUT, "", "time limit")
        assert (
            render_result(late, 400, errors=errors)
            == "\n<interpreter>\ntime limit\n</interpreter>\n\n"
        )


def test_what_was_added_to_the_error_is_shown_with_a_traceback_too():
    added = dataclasses.replace(RAISED, error=f"{LAST}; the session was ended by that")
    for errors in ("traceback", "last_line"):
        shown = render_result(added, 400, errors=errors)
        assert (
            f"{LAST}; the session was ended by that\n</interp" in shown and shown.count(LAST) == 1
        )


def test_a_traceback_loses_its_outermost_lines_first_and_never_its_last():
    silent = dataclasses.replace(RAISED, stdout="")
    for limit in range(len(LAST), len(RAISED.traceback) + 1):
        notice, _, kept = render_result(silent, limit)[len("\n<interpreter>\n") :].partition("\n")
        kept = kept.removesuffix("\n</interpreter>\n\n")
        if notice == FRAMES.splitlines()[0]:
            assert limit >= len(RAISED.traceback) - 1  # the line break at the end is not counted
            continue
        assert RAISED.traceback.endswith(kept) and kept.endswith(LAST)
        assert kept == LAST or f"\n{kept}" in RAISED.traceback  # only whole lines
        cut = len(RAISED.traceback) - len(kept) - (kept == LAST)
        assert notice == f"[... {cut} characters cut ...]"
        assert len(kept) - (kept != LAST) <= limit
    assert "return 1 / x" in render_result(silent, len(LAST) + 17)
    assert INNER in render_result(silent, len(LAST) + len(INNER) - 1)


def test_output_and_traceback_have_half_of_the_room_each():
    frames = "".join(f'  File "<program>", line {i}, in f\n' for i in range(10, 40))
    for printed, lines in ((999, 5), (100, 8)):  # 34 characters a line, room for 382
        failed = Execution(
            Outcome.RUNTIME_ERROR, "x" * printed, "E: the last", frames + "E: the last"
        )
        shown = render_result(failed, 393)
        assert shown.count("x") == min(printed, 382 - 34 * lines + 1)
        assert shown.count(", in f\n") == lines


@given(st.text(max_size=30), st.integers(0, 40), st.sampled_from(["head", "tail", "middle"]))
def test_the_hidden_part_is_what_the_cut_leaves_out(text, limit, where):
    first, last = hidden_part(len(text), limit, where)
    notice = f"[... {last - first} characters cut ...]"
    shown = cut_text(text, limit, where)
    if first == last:
        assert shown == text
    else:
        ahead, behind = shown.split(notice)
        assert (ahead.removesuffix("\n"), behind.removeprefix("\n")) == (
            text[:first].removesuffix("\n") if not ahead else text[:first],
            text[last:].removeprefix("\n") if not behind else text[last:],
        )
    execution = Execution(Outcome.OK, text)
    assert cut_output(execution, limit, where).stdout == shown


ENCODABLE = st.characters(codec="utf-8", exclude_characters="\n")


@given(
    stdout=st.text(ENCODABLE, max_size=300),
    frames=st.lists(st.text(ENCODABLE), max_size=9),
    last=st.text(ENCODABLE, min_size=1, max_size=80),
    limit=st.integers(1, 400),
    where=st.sampled_from(["head", "tail", "middle"]),
)
def test_neither_output_nor_traceback_crowds_out_the_other(stdout, frames, last, limit, where):
    failed = Execution(Outcome.RUNTIME_ERROR, stdout, last, "\n".join([*frames, last]))
    shown = render_result(failed, limit, where)
    body = shown.removeprefix("\n<interpreter>\n").removesuffix("\n</interpreter>\n\n")
    notices = re.findall(r"\[\.\.\. (\d+) characters cut \.\.\.\]", body)
    everything = len(stdout) + len("\n".join(frames)) + len(last)
    if everything <= limit:
        assert "characters cut" in stdout + last + "".join(frames) or not notices
    if len(last) <= limit:
        assert body.endswith(last)
        room = limit - len(last)
        if len(stdout) <= room // 2:
            assert body.startswith(stdout)
    # The kept characters fit the limit, without the notices and the line breaks of three parts.
    assert len(body) <= limit + 3 * len("[... 9999 characters cut ...]\n\n")


def test_a_lone_surrogate_is_spelled_out():
    """No tokenizer accepts a lone surrogate."""
    failed = Execution(Outcome.RUNTIME_ERROR, "a\ud800", "E: \udfff", "\udabc\nE: \udfff")
    shown = render_result(failed, 400, errors="last_line")
    assert shown == "\n<interpreter>\na\\ud800\nE: \\udfff\n</interpreter>\n\n"
    assert "\na\\ud800\n\\udabc\nE: \\udfff\n" in render_result(failed, 400)
    many = Execution(Outcome.OK, "\ud800" * 100)  # the shown output is cut
    assert "\n\\ud800\n[... 594 characters cut" in render_result(many, 6, "tail")


def test_an_infrastructure_failure_is_never_shown():
    with pytest.raises(ValueError, match="infrastructure"):
        render_result(Execution(Outcome.INFRASTRUCTURE, "", "jail"), 400)
