"""The prompt of the arm without the tool."""

import json

import pytest

from retool_env.commands.text_prompt import text_prompt_lines, text_rules
from retool_env.errors import SettingsError
from retool_env.rules import Rules

PLAIN = "Solve {query}\n"
OFFER = "Use the interpreter. {query}\n"


@pytest.mark.parametrize(
    ("template", "text", "lines"),
    [
        (None, Rules(interpreter=False).template, []),
        (OFFER, Rules(interpreter=False).template, ["has the default prompt: give --text-prompt"]),
        (PLAIN, PLAIN, ["has the same prompt"]),
    ],
)
def test_without_a_file_the_words_of_the_prompt_decide_and_a_line_says_so(template, text, lines):
    rules = Rules(prompt_template=template)
    assert text_rules(rules, None).template == text
    assert not text_rules(rules, None).interpreter
    found = text_prompt_lines(rules, None)
    assert len(found) == len(lines) and all(a in b for a, b in zip(lines, found, strict=True))


def test_a_file_decides_whatever_words_the_prompts_have(tmp_path):
    file = tmp_path / "prompt.txt"
    file.write_text("In Python's spirit: {query}")
    for template in (None, PLAIN, OFFER):
        rules = Rules(prompt_template=template)
        assert text_rules(rules, file).template == "In Python's spirit: {query}"
        assert text_prompt_lines(rules, file) == [
            f"{file} seems to offer the tool: it has 'Python'"
        ]
    file.write_text(PLAIN)
    assert text_prompt_lines(Rules(prompt_template=OFFER), file) == []
    (tmp_path / "prompt.json").write_text(json.dumps({"any": PLAIN}))
    assert text_rules(Rules(), tmp_path / "prompt.json").template == PLAIN


def test_a_file_that_is_not_a_prompt_is_refused(tmp_path):
    file = tmp_path / "prompt.txt"
    with pytest.raises(FileNotFoundError):
        text_rules(Rules(), file)
    file.write_text("no field\n")
    with pytest.raises(SettingsError, match=r"prompt.txt holds no \{query\}"):
        text_rules(Rules(), file)
