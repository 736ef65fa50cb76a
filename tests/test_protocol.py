import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retool_env.protocol import (
    PROMPT,
    TEXT_PROMPT,
    PromptTemplate,
    TurnKind,
    cut_text,
    is_empty_program,
    parse_turn,
    render_result,
    unfence,
)
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
    if turn.kind is not TurnKind.VOID:
        assert turn.content in text[turn.start : turn.end]
        assert text[: turn.end].endswith(f"</{turn.kind}>")
        assert text[turn.start :].startswith(f"<{turn.kind}>")


@given(tagged, st.text(), st.booleans())
def test_what_follows_the_closing_tag_changes_nothing(text, rest, interpreter):
    turn = parse_turn(text, interpreter)
    if turn.kind is not TurnKind.VOID:
        assert parse_turn(text + rest, interpreter) == turn


@given(st.text(alphabet=st.characters(exclude_characters="<>")))
def test_a_program_comes_out_as_written(program):
    inner = parse_turn(f"<code>\n```python\n{program}\n```\n</code>").content
    assert inner == unfence(program) or "```" in program
    for line in inner.splitlines():
        assert line in program


@pytest.mark.parametrize(
    ("block", "program"),
    [
        ("\n```python\nprint(1)\n```\n", "print(1)"),
        ("\n```py\nprint(1)\n```", "print(1)"),
        ("```\nprint(1)\n```", "print(1)"),
        ("\nprint(1)\n", "print(1)"),
        ("\n```python\nif x:\n    y\n", "if x:\n    y"),
        ("\n```python\nprint('```')\n```\n", "print('```')"),
        ("\n    indented\n", "    indented"),
        ("\n```python\n```\n", ""),
        ("", ""),
    ],
)
def test_fences(block, program):
    assert unfence(block) == program


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


def test_an_infrastructure_failure_is_never_shown():
    with pytest.raises(ValueError, match="infrastructure"):
        render_result(Execution(Outcome.INFRASTRUCTURE, "", "jail"), 400)


def test_default_prompts_name_the_tags_and_hold_the_problem():
    assert "<code>" in PROMPT and "<code>" not in TEXT_PROMPT
    for template in (PROMPT, TEXT_PROMPT):
        text = PromptTemplate(template)("2 + {2}?")
        assert "2 + {2}?" in text and "\\boxed{result}" in text and "{query}" not in text


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
