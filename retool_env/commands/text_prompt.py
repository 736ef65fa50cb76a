"""The prompt of the arm without the tool: the user's own, or a prompt found by words.

No program can tell for sure whether a prompt of the user's own offers the tool. So `--text-prompt`
names the prompt of the arm without the tool. Without this option, words such as `interpreter`
decide, and a line says what they decided.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import TYPE_CHECKING

from retool_env.errors import SettingsError
from retool_env.files import read_text

if TYPE_CHECKING:
    from retool_env.rules import Rules

_NAMES_TOOL = re.compile(r"<code>|interpreter|python|tool_call", re.IGNORECASE)
"""Words of a prompt that seems to offer the tool."""


def text_rules(rules: Rules, file: Path | None) -> Rules:
    """The rules of the arm without the tool.

    Args:
        rules: The rules of the arms with the tool.
        file: The file of the arm's prompt: a text with `{query}`, or a JSON file as for
            `prompt_template`. `None`: the prompt of `rules`, or the default prompt if that prompt
            seems to offer the tool.

    Raises:
        SettingsError: The file is not a prompt.
        OSError: The file can't be read.
    """
    template = rules.prompt_template
    if file is not None:
        template = str(file) if file.suffix == ".json" else read_text(file)
        if file.suffix != ".json" and "{query}" not in template:
            raise SettingsError(
                f"--text-prompt {file} holds no {{query}}: write {{query}} at the place of the "
                "question"
            )
    elif template is not None and _NAMES_TOOL.search(rules.template):
        template = None  # the default prompt
    return dataclasses.replace(rules, interpreter=False, prompt_template=template)


def text_prompt_lines(rules: Rules, file: Path | None) -> list[str]:
    """A line for the reader, where words of a prompt were taken for the offer of the tool.

    Args:
        rules: The rules of the arms with the tool, whose prompt describes the tool.
        file: See `text_rules`.
    """
    without = text_rules(rules, file)
    if file is not None:
        word = _NAMES_TOOL.search(without.template)
        return [f"{file} seems to offer the tool: it has {word[0]!r}"] if word else []
    if rules.prompt_template is None:
        return []
    if without.prompt_template is None:
        return [
            "your prompt names the tool, so the arm `text` has the default prompt: give "
            "--text-prompt FILE for a prompt of your own"
        ]
    return [
        "your prompt does not name the tool, so the arm `text` has the same prompt, and the price "
        "of the offer is not shown: give --text-prompt FILE for a different prompt"
    ]
