import dataclasses
import itertools
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retool_env.protocol.program import read_program
from retool_env.protocol.prompt import PromptTemplate, default_prompt
from retool_env.protocol.result import cut_text, is_empty_program
from retool_env.protocol.tags import parse_turn, render_result
from retool_env.protocol.turn import TurnKind
from retool_env.sandbox import Execution, Outcome

PIECES = [
    "<code>",
    "</code>",
    "<answer>",
    "</answer>",
    "<think>",
    "</think>",
    "```python\n",
    "```",
    "\n",
    "π",
]
tagged = st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=8))).map("".join)


@given(tagged, st.booleans())
def test_parsing_is_total_and_the_first_closing_tag_decides(text, interpreter):
    turn = parse_turn(text, interpreter)
    tags = ["</code>", "</answer>"] if interpreter else ["</answer>"]
    ends = [text.find(tag) + len(tag) for tag in tags if tag in text]
    assert turn.end == (min(ends) if ends else len(text))
    assert 0 <= turn.start <= turn.end <= len(text)
    if turn.kind is TurnKind.CODE:
        block = text[turn.start : turn.end].removeprefix("<code>").removesuffix("</code>")
        assert (turn.content, turn.form) == read_program(block)
    else:
        assert turn.form is None
    if turn.kind is not TurnKind.VOID:
        assert turn.kind is TurnKind.CODE or turn.content in text[turn.start : turn.end]
        assert text[: turn.end].endswith(f"</{turn.kind}>")
        assert text[turn.start :].startswith(f"<{turn.kind}>")


@given(tagged, st.text(), st.booleans())
def test_what_follows_the_closing_tag_changes_nothing(text, rest, interpreter):
    turn = parse_turn(text, interpreter)
    if turn.kind is not TurnKind.VOID:
        assert parse_turn(text + rest, interpreter) == turn


@pytest.mark.parametrize(
    ("block", "program", "form"),
    [
        ("\nprint(1)\n", "print(1)", "plain"),
        ("\n```python\nprint(1)\n```\n", "print(1)", "fenced"),
        ("So: ```python print(1)```", "print(1)", "fenced"),
        ("\ufeffprint(1)", "print(1)", "mended:marks"),
        ("\n>>> print(1)\n1\n", "print(1)", "mended:prompts"),
        ("\n    print(1)\n", "print(1)", "mended:dedent"),
        ("\n    print(1\n", "    print(1", "plain"),
        ("\n```python\n```\n", "", "fenced"),
        ("", "", "plain"),
    ],
)
def test_the_program_of_a_block_says_how_it_was_read(block, program, form):
    turn = parse_turn(f"<code>{block}</code>")
    assert (turn.content, turn.form) == (program, form)


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


def test_output_and_traceback_have_half_of_the_room_each():
    frames = "".join(f'  File "<program>", line {i}, in f\n' for i in range(10, 40))
    for printed, lines in ((999, 5), (100, 8)):  # 34 characters a line, room for 382
        failed = Execution(
            Outcome.RUNTIME_ERROR, "x" * printed, "E: the last", frames + "E: the last"
        )
        shown = render_result(failed, 393)
        assert shown.count("x") == min(printed, 382 - 34 * lines + 1)
        assert shown.count(", in f\n") == lines


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


def test_default_prompts_name_the_tags_and_hold_the_problem():
    assert "<code>" in default_prompt() and "<code>" not in default_prompt(interpreter=False)
    for modes in itertools.product([True, False], repeat=3):
        template = default_prompt(*modes)
        text = PromptTemplate(template)("2 + {2}?")
        assert "2 + {2}?" in text and "\\boxed{result}" in text and "{query}" not in text


def test_the_default_prompt_fits_the_mode():
    assert "remembers nothing" in default_prompt() and "last line" not in default_prompt()
    for display in (True, False):
        text = default_prompt(session=True, display=display)
        assert "remembers nothing" not in text and "names and imports last" in text
        assert ("the value of a last line" in text) is display
    assert default_prompt(False, True, True) == default_prompt(False)


def test_templates_from_text_and_from_files(tmp_path):
    assert PromptTemplate.load("Q: {query} {{}}")("x") == "Q: x {}"
    path = tmp_path / "template.json"
    path.write_text(json.dumps({"retool": "Do \\boxed{{}}: {query}"}))
    assert PromptTemplate.load(path)("x") == "Do \\boxed{}: x"
    assert PromptTemplate.load(str(path))("x") == "Do \\boxed{}: x"


@pytest.mark.parametrize("text", ["no field", "{query} {other}", "{query} {", "{}", "{query} {0}"])
def test_a_template_without_exactly_one_field_is_refused(text):
    with pytest.raises(ValueError, match="braces"):
        PromptTemplate(text)


def test_a_template_that_is_no_file_or_no_template_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file"):
        PromptTemplate.load("nothing here")
    path = tmp_path / "bad.json"
    for content in ("[]", "{", '{"a": "{query}", "b": "{query}"}', '{"a": 1}'):
        path.write_text(content)
        with pytest.raises(ValueError, match="JSON object"):
            PromptTemplate.load(path)


def test_retools_own_template_file_loads(data):
    prompt = PromptTemplate.load(data / "retool_prompt_template.json")("What is 6 * 7?")
    assert "What is 6 * 7?" in prompt and "\\boxed{'The final answer goes here.'}" in prompt
