"""The prompt: its default words, and the user's own templates."""

from __future__ import annotations

import json
import string
from pathlib import Path

from retool_env.errors import MissingFile, SettingsError
from retool_env.files import file_fault, read_text

_TASK = "Solve the problem below. Reason step by step.\n\n"

_TOOL = """\
You may use a Python interpreter whenever it helps. Write {script}, like this:
<code>
```python
print(6 * 7)
```
</code>
{memory} Whatever it prints{value} comes back to you between <interpreter> and </interpreter>, \
and you go on from there.

"""

_END = """\
When you are done, give the result like this, and stop:
<answer>
\\boxed{{result}}
</answer>

Problem: {query}
"""


def default_prompt(interpreter: bool = True, session: bool = False, display: bool = False) -> str:
    """The default prompt, a `str.format` template with the one field `query`.

    Args:
        interpreter: Whether the model can run code.
        session: Whether the code blocks of an episode share a process.
        display: Whether the interpreter shows the value of a last expression.
    """
    if not interpreter:
        return _TASK + _END
    tool = _TOOL.format(
        script=script_words(session), memory=memory_words(session), value=value_words(display)
    )
    return _TASK + tool + _END


def script_words(session: bool) -> str:
    """The name of a program in the prompt: code of a session, or a complete script."""
    return "code" if session else "a complete script, with its imports"


def memory_words(session: bool) -> str:
    """A sentence of the prompt that says which state a program shares with earlier ones."""
    if session:
        return (
            "Each block runs in the process of those before it, like a notebook's cell: "
            "names and imports last."
        )
    return "Each script runs on its own and remembers nothing of earlier ones."


def value_words(display: bool) -> str:
    """The words of the prompt that add the value of a last expression to the printed output."""
    return ", and the value of a last line that is an expression," if display else ""


class PromptTemplate:
    """A `str.format` template whose only field is `query`, the question.

    Args:
        template: The text of the template. Literal braces are written twice.

    Raises:
        ValueError: If the text is not a format string, or its fields are not exactly `{query}`.
    """

    def __init__(self, template: str) -> None:
        try:
            fields = {
                name for _, name, _, _ in string.Formatter().parse(template) if name is not None
            }
        except ValueError as error:
            raise SettingsError(
                f"the prompt template is not a format string: {error}; write literal braces twice"
            ) from None
        if fields != {"query"}:
            named = ", ".join(sorted(f"{{{name}}}" for name in fields)) or "none"
            raise SettingsError(
                "a prompt template must have the one field {query}, and literal braces must be "
                f"written twice; the fields of this template: {named}"
            )
        self.template = template

    def __call__(self, query: str) -> str:
        """Fill in a question; returns the prompt."""
        return self.template.format(query=query)

    @classmethod
    def load(cls, template: str | Path) -> PromptTemplate:
        """Load a template from a text with `{query}`, or from a JSON file in ReTool's format.

        The JSON file holds one object with one key, whose value is the template.

        Args:
            template: The text, or the path of the file.

        Raises:
            SettingsError: If neither the text nor the file holds a valid template.
            FileNotFoundError: If the file was not found, or is not a regular file.
        """
        if not isinstance(template, str | Path):
            raise SettingsError(
                f"prompt_template must be a text with {{query}} or the path of a JSON file, not "
                f"{template!r:.60}"
            )
        if isinstance(template, str) and "{query}" in template:
            return cls(template)
        if "\n" in str(template):  # it is the content of a file
            raise SettingsError(
                f"the prompt template {str(template)!r:.60} holds no {{query}}: write {{query}} at "
                "the place of the question"
            )
        path = Path(template)
        if fault := file_fault(path):
            raise MissingFile(
                f"prompt template {str(template)!r:.200} holds no {{query}} and can't be read "
                f"as a file: {fault}"
            )
        try:
            values = list(json.loads(read_text(path)).values())
        except (ValueError, AttributeError, RecursionError):
            values = []
        if len(values) != 1 or not isinstance(values[0], str):
            raise SettingsError(
                f'{path} must hold a JSON object with one template: {{"name": "... {{query}} ..."}}'
            )
        return cls(values[0])
