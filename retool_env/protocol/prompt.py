"""The prompt: its default words, and templates of one's own."""

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
{memory} Whatever it prints{value} comes back to you between <interpreter> and </interpreter>, and you go on from there.

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
        interpreter: Whether there is one.
        session: Whether the code blocks of an episode share a process.
        display: Whether the value of a last expression is shown.
    """
    if not interpreter:
        return _TASK + _END
    tool = _TOOL.format(
        script=script_words(session), memory=memory_words(session), value=value_words(display)
    )
    return _TASK + tool + _END


def script_words(session: bool) -> str:
    """What the model is asked to write."""
    return "code" if session else "a complete script, with its imports"


def memory_words(session: bool) -> str:
    """What a program remembers of those before it, a sentence."""
    if session:
        return "Each block runs in the process of those before it, like a notebook's cell: names and imports last."
    return "Each script runs on its own and remembers nothing of earlier ones."


def value_words(display: bool) -> str:
    """What comes back besides what a program prints, to be put behind it."""
    return ", and the value of a last line that is an expression," if display else ""


class PromptTemplate:
    """A `str.format` template whose one field is `query`, the problem.

    Args:
        template: The template itself.

    Raises:
        ValueError: If it is no such template.
    """

    def __init__(self, template: str) -> None:
        try:
            fields = {
                name for _, name, _, _ in string.Formatter().parse(template) if name is not None
            }
        except ValueError as error:
            raise SettingsError(
                f"not a format string: {error}; write literal braces twice"
            ) from None
        if fields != {"query"}:
            named = ", ".join(sorted(f"{{{name}}}" for name in fields)) or "none"
            raise SettingsError(
                "a prompt template has the one field {query}, and literal braces are written twice; "
                f"this one's fields: {named}"
            )
        self.template = template

    def __call__(self, query: str) -> str:
        """The prompt of a problem."""
        return self.template.format(query=query)

    @classmethod
    def load(cls, template: str | Path) -> PromptTemplate:
        """A template from a text that holds `{query}`, or from the path of a JSON file in ReTool's format.

        Such a file holds one object with one key, whose value is the template.

        Raises:
            ValueError: If it is neither.
            FileNotFoundError: If there is no such file, or it is not a regular one.
        """
        if isinstance(template, str) and "{query}" in template:
            return cls(template)
        path = Path(template)
        if fault := file_fault(path):
            raise MissingFile(
                f"prompt template {str(template)!r:.200} holds no {{query}}, and is no file either: {fault}"
            )
        try:
            values = list(json.loads(read_text(path)).values())
        except (ValueError, AttributeError, RecursionError):
            values = []
        if len(values) != 1 or not isinstance(values[0], str):
            raise SettingsError(
                f'{path} must hold a JSON object of one template: {{"name": "... {{query}} ..."}}'
            )
        return cls(values[0])
