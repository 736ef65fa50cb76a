"""The default prompt, and the user's own templates."""

import itertools
import json

import pytest

from retool_env.protocol.prompt import PromptTemplate, default_prompt


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
