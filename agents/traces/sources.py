"""Sources: the lines of a cold start's input, text-only solutions and rewritten traces."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agents.base.settings import SettingsError, prefixed
from agents.traces.scripted import authors, conversation
from agents.traces.verification import Parts
from retool_env.files import file_fault
from retool_env.grading import extract_boxed
from retool_env.problem import Problem
from retool_env.problems.columns import ANSWER_KEYS, find_column
from retool_env.problems.json_lines import row_problem
from retool_env.problems.rows import read_rows
from retool_env.protocol.prompt import memory_words, script_words, value_words
from retool_env.rules import Rules

PROMPT = """\
Below are a problem and a solution of it in words. Write the solution again, as one who has a \
Python interpreter at hand: keep the line of thought, and where the solution calculates something \
that is tedious or easily goes wrong by hand, let a program do it. What is easily done in one's \
head stays in words. Write as if you solved the problem for the first time, and do not mention \
that a solution was given.

For a program, write {script}, like this:
<code>
```python
print(6 * 7)
```
</code>
Stop there. {memory} Whatever it prints{value} comes back to you between <interpreter> and \
</interpreter>; never write such a block yourself. Go on from what is really in it: where it is an \
error, say what was wrong and write a program that works; where it differs from the solution, \
trust the program.

At the end, give the result like this, and stop:
<answer>
\\boxed{{result}}
</answer>

Problem: {question}

Solution: {solution}
"""
"""The prompt of a rewriter."""


@dataclass(frozen=True)
class Source:
    """One line of the input."""

    problem: Problem
    """The problem of the episode. Its question is the rewriter's prompt, or the user's message of a
    rewritten trace."""
    prompt: str
    """The user's message in the trace."""
    known: Mapping[str, str]
    """Columns of the result beside the trace: the id and, if known, the question and the answer."""
    parts: Parts = ()
    """The parts of a rewritten trace, with their authors. The environment's parts are made up."""


def read_sources(path: Path, rules: Rules, require_answer: bool) -> list[Source]:
    """Read the lines of a cold start's input, in the file's order.

    Args:
        path: A file of JSON lines; `agents.coldstart` describes its columns.
        rules: The rules that give the prompt of traces from text-only solutions.
        require_answer: Whether a rewritten trace must have a known answer.

    Raises:
        SettingsError: If a line can't be used. The text names the file, the line and the reason.
    """
    if fault := file_fault(path):
        raise SettingsError(f"data: {fault}")
    sources: list[Source] = []
    places: dict[str, str] = {}
    with prefixed("data"):
        for index, (place, row) in enumerate(read_rows(path)):
            try:
                name = f"{path.stem}/{index}"  # the id of a row without an id
                if "messages" in row:
                    source = _rewritten(row, name, require_answer)
                else:
                    source = _text_only(row, name, rules)
            except (TypeError, ValueError) as error:
                raise ValueError(f"{place}: {error}") from error
            name = source.problem.id
            if name in places:
                raise ValueError(f"{place}: {places[name]} has the same id {name!r}; change one")
            places[name] = place
            sources.append(source)
    if not sources:
        raise SettingsError(f"data: {path} is empty")
    return sources


def _text_only(row: dict[str, Any], name: str, rules: Rules) -> Source:
    problem = row_problem(row, name)
    solution = row.get("solution")
    if solution is None and "####" in str(row.get("answer")):
        solution = re.sub(r"<<[^<>\n]*>>", "", row["answer"])  # GSM8K's calculator annotations
    if not isinstance(solution, str) or not solution.strip():
        raise ValueError('the text-only solution is missing: add a column "solution"')
    told = PROMPT.format(
        script=script_words(rules.session),
        memory=memory_words(rules.session),
        value=value_words(rules.display),
        question=problem.question,
        solution=solution.strip(),
    )
    known = {"id": problem.id, "question": problem.question, "answer": problem.answer}
    return Source(dataclasses.replace(problem, question=told), rules.prompt(problem), known)


def _rewritten(row: dict[str, Any], name: str, require_answer: bool) -> Source:
    prompt, response = conversation(row)
    known = find_column(row, ANSWER_KEYS) is not None
    if require_answer and not known:
        raise ValueError(
            'a trace without a known answer can\'t be verified: add a column "answer", or set '
            "require_answer=false"
        )
    answer = {} if known else {"answer": extract_boxed(response) or "unknown"}
    problem = row_problem({**row, **answer, "question": prompt}, name)
    about = {"id": problem.id}
    if isinstance(row.get("question"), str):
        about["question"] = row["question"]
    if known:
        about["answer"] = problem.answer
    # The response is a part of the problem, so that a changed line is done again.
    problem = dataclasses.replace(problem, question=prompt, metadata={"response": response})
    return Source(problem, prompt, about, authors(response))
