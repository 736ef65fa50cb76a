"""Cold start: text-only solutions become traces that use the interpreter (ReTool, section 2.2), for `sft.py` to train on.

Input is a file of JSON lines, of two kinds:

- a question, its known answer and a solution in words (`question`, `answer`, `solution`, or what else
  `retool_env.problems.json_lines` knows the first two as; of an answer worked out as in GSM8K, the working is the solution). A
  language model, the rewriter, writes it again with code. It does so in an episode like any other: its turn ends at `</code>`,
  the program runs in the sandbox, and it goes on from what was really printed.
- a trace that somebody rewrote already, in the shape of the paper's own set (`messages`, tags as they are), whose results a
  language model made up. It is played again: each code block runs, the real result takes the place of what stood in
  `<interpreter>`, and the text behind that goes on.

Either way an `Episode` renders the results, so they are what a model meets in training. Then each trace is verified
(`verification.py` says how, and for what it is dropped).

The run's folder holds, besides its settings:

data.jsonl         the traces that were verified, for `python -m agents sft data=...`, in the input's order
dropped.jsonl      the others, each with its reason
report.json        counts
transcripts.jsonl  all episodes; what is in it is not done again by `--resume`
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from agents.base.board import Bar
from agents.base.model import load_model
from agents.base.records import (
    check_kinds,
    damaged,
    read_episodes,
    read_object,
    write_atomically,
    write_transcripts_atomically,
)
from agents.base.run import Run
from agents.base.settings import (
    SANDBOX,
    SettingsError,
    check_least,
    find_sandbox,
    find_task,
    setting,
)
from agents.traces.scripted import authors, conversation
from agents.traces.verification import Drop, Parts, agrees, results, verify, written
from retool_env.execution import Sandbox
from retool_env.files import file_fault
from retool_env.grading import extract_boxed
from retool_env.problem import Problem
from retool_env.problems.columns import ANSWER_KEYS, find_column
from retool_env.problems.json_lines import row_problem
from retool_env.problems.rows import read_rows
from retool_env.protocol.prompt import memory_words, script_words, value_words
from retool_env.rollout import Policy, PolicyUnavailable, RolloutEngine, TextGeneration, TextPolicy
from retool_env.rollout.named import POLICIES, SERVED, Model, make_policy
from retool_env.rollout.openai.errors import RequestRefused
from retool_env.rollout.progress import Progress
from retool_env.rollout.transformers.policy import TransformersPolicy
from retool_env.rules import Rules
from retool_env.servers.address import shown_url, variable_name
from retool_env.transcript import StopReason, Transcript

ONE_PROCESS = True
"""It is not for several processes."""

TRAINS_MODEL = False
"""`model` is the rewriter: what it was trained on says nothing of the environment that is trained in later."""

REWRITER = (
    "what serves it: transformers, vllm (both in this process), an API's http://.../v1, or a mapping {name: one of these, and "
    "arguments of its policy; of an API also api_key_env, the variable that holds the key}"
)

REFUSALS = 8
"""So many lines in a row that an API refuses, and at least as many as are in flight: the setting is wrong, not the lines."""

PROMPT = """\
Below are a problem and a solution of it in words. Write the solution again, as one who has a Python interpreter at hand: keep \
the line of thought, and where the solution calculates something that is tedious or easily goes wrong by hand, let a program do it. \
What is easily done in one's head stays in words. Write as if you solved the problem for the first time, and do not mention that \
a solution was given.

For a program, write {script}, like this:
<code>
```python
print(6 * 7)
```
</code>
Stop there. {memory} Whatever it prints{value} comes back to you between <interpreter> and </interpreter>; never write such \
a block yourself. Go on from what is really in it: where it is an error, say what was wrong and write a program that works; where it \
differs from the solution, trust the program.

At the end, give the result like this, and stop:
<answer>
\\boxed{{result}}
</answer>

Problem: {question}

Solution: {solution}
"""


@dataclass(frozen=True)
class Settings:
    """Settings of the rewriting."""

    name: str = setting("coldstart", "the run's folder is runs/<name>")
    data: str | None = setting(
        None, "JSON lines of question, answer and solution, or of rewritten traces as messages"
    )
    model: str | None = setting(
        None, "the rewriter: a name at its API, a folder or a Hub id; rewritten traces need none"
    )
    rewriter: str | dict[str, Any] = setting("transformers", REWRITER)
    dtype: str = setting("float32", "of a rewriter's weights in transformers")
    temperature: float = setting(0.7, "of the rewriter's sampling")
    env: dict[str, Any] = setting(
        {"id": "ReTool-Arithmetic-v0"},
        "the environment that is trained in later: its rules hold for the traces, and rewritten solutions get its prompt",
    )
    sandbox: str | dict[str, Any] = setting("nsjail", SANDBOX)
    seed: int = setting(0, "of the rewriter's sampling")
    in_flight: int = setting(32, "traces in the making at once")
    require_answer: bool = setting(
        True,
        "refuse rewritten traces that come without a known answer; false: take them, their answers unchecked",
    )
    keep_contradictions: bool = setting(
        False, "keep traces whose made-up results differ from the real ones, as the paper does"
    )


@dataclass(frozen=True)
class Source:
    """One line of the input."""

    problem: Problem
    """Of the episode: its question is what the rewriter is told, or the user's message of a rewritten trace."""
    prompt: str
    """The user's message of the trace."""
    known: Mapping[str, str]
    """What goes with the trace into the result: the id, and the question and its answer where they are known."""
    said: Parts = ()
    """Of a trace that is rewritten already: who wrote what, the environment's part being made up."""


def train(settings: Settings, folder: Path, resume: bool = False) -> Path:
    """Make the traces that are not made yet, and verify all.

    Returns:
        The file of those that are right.

    Raises:
        SettingsError: If the input can't be used, the rewriter refuses, or no trace is right.
        PolicyUnavailable: If some could not be made, because the API or the sandbox failed. The others are written.
    """
    check_least(settings, {"in_flight": 1, "temperature": 0})
    run = Run(folder, settings, resume)
    result = folder / "data.jsonl"
    if run.finished:
        print(table(read_report(folder)))
        return result
    if settings.data is None:
        raise SettingsError("data: name a file of JSON lines, data=solutions.jsonl")
    rules, _ = find_task(settings.env)
    if not rules.interpreter or rules.protocol != "tags":
        raise SettingsError("env: a cold start with code needs interpreter=true and protocol=tags")
    sources = read_sources(Path(settings.data), rules, settings.require_answer)
    with ExitStack() as resources:
        sandbox = resources.enter_context(find_sandbox(settings.sandbox, rules))  # type: ignore[arg-type]
        rewriter = None
        if not all(source.said for source in sources):
            rewriter = make_rewriter(settings)
            resources.enter_context(rewriter)
        run.start()
        transcripts = asyncio.run(make_traces(settings, run, rules, sources, rewriter, sandbox))
        if isinstance(rewriter, TextPolicy) and rewriter.usage:
            print(f"the API in this start: {rewriter.usage}")
    write_result(settings, folder, sources, transcripts)
    run.finish()
    return result


def read_sources(path: Path, rules: Rules, require_answer: bool) -> list[Source]:
    """What is to be done, in the file's order.

    Args:
        path: JSON lines; see the module.
        rules: Whose prompt the traces of text-only solutions get.
        require_answer: Whether a rewritten trace must have a known answer.

    Raises:
        SettingsError: Naming the file and the line that can't be used, and why.
    """
    if fault := file_fault(path):
        raise SettingsError(f"data: {fault}")
    sources: list[Source] = []
    places: dict[str, str] = {}
    try:
        for index, (place, row) in enumerate(read_rows(path)):
            try:
                name = f"{path.stem}/{index}"  # where the row has none
                if "messages" in row:
                    source = _rewritten(row, name, require_answer)
                else:
                    source = _text_only(row, name, rules)
            except (TypeError, ValueError) as error:
                raise ValueError(f"{place}: {error}") from error
            name = source.problem.id
            if name in places:
                raise ValueError(f"{place}: the id {name!r} is already that of {places[name]}")
            places[name] = place
            sources.append(source)
    except ValueError as error:
        raise SettingsError(f"data: {error}") from error
    if not sources:
        raise SettingsError(f"data: {path} is empty")
    return sources


def _text_only(row: dict[str, Any], name: str, rules: Rules) -> Source:
    problem = row_problem(row, name)
    solution = row.get("solution")
    if solution is None and "####" in str(row.get("answer")):
        solution = re.sub(r"<<[^<>\n]*>>", "", row["answer"])  # GSM8K's marks for a calculator
    if not isinstance(solution, str) or not solution.strip():
        raise ValueError('no text-only solution: expected a column "solution"')
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
            'a trace without a known answer can\'t be verified: add a column "answer", or set require_answer=false'
        )
    answer = {} if known else {"answer": extract_boxed(response) or "unknown"}
    problem = row_problem({**row, **answer, "question": prompt}, name)
    about = {"id": problem.id}
    if isinstance(row.get("question"), str):
        about["question"] = row["question"]
    if known:
        about["answer"] = problem.answer
    # The response is a part of the problem, so that a line which changes is done again.
    problem = dataclasses.replace(problem, question=prompt, metadata={"response": response})
    return Source(problem, prompt, about, authors(response))


def make_rewriter(settings: Settings) -> Policy | TextPolicy:
    """The model that rewrites.

    Raises:
        SettingsError: If none is named, or it can't be had like that.
        ImportError: If a package that it needs is missing.
    """
    given = {"name": settings.rewriter} if isinstance(settings.rewriter, str) else settings.rewriter
    arguments = dict(given)
    name = str(arguments.pop("name", None))
    if settings.model is None:
        raise SettingsError("model: name the rewriter, a folder, a Hub id, or its name at an API")
    sampling = {"temperature": settings.temperature, **arguments}
    model = Model(settings.model)
    if name.startswith(("http://", "https://")):
        variable = sampling.pop("api_key_env", None)
        if variable is not None and variable not in os.environ:
            raise SettingsError(
                f"rewriter.api_key_env: there is no variable {variable_name(variable)!r}"
            )
        key = None if variable is None else os.environ[variable]
        sampling = {"concurrency": settings.in_flight, **sampling, "api_key": key, "urls": name}
        name = "openai"
    elif name == "transformers":
        loaded, tokenizer = load_model(settings.model, settings.dtype)
        if torch.accelerator.is_available():
            loaded = loaded.to(torch.accelerator.current_accelerator())
        model = Model(settings.model, loaded, tokenizer)
    elif name not in POLICIES or name in SERVED:
        names = ", ".join(each for each in POLICIES if each not in SERVED)
        raise SettingsError(
            f"rewriter: {shown_url(name)!r} is none; there are {names}, and an API's http://.../v1"
        )
    try:
        return make_policy(name, model, **sampling)
    except SettingsError as error:
        raise SettingsError(f"rewriter: {error}") from error


class Replay(TextPolicy):
    """Writes a trace again, turn by turn: a policy of text without a model.

    Args:
        said: Who wrote what of it. What the environment is said to have written is left out.
    """

    def __init__(self, said: Parts) -> None:
        first, *later = (text for author, text in said if author == "model")
        # Line breaks behind a result are the environment's.
        self._turns = [first, *(text.lstrip() for text in later)]

    async def write(self, transcript: Transcript, stop: Sequence[str], seed: int) -> TextGeneration:
        """The next turn; an empty one where there is none left."""
        number = sum(span.author == "model" for span in transcript.spans)
        text = self._turns[number] if number < len(self._turns) else ""
        return TextGeneration(text, "tag" if any(tag in text for tag in stop) else "eos")


@dataclass
class Tally:
    """What is shown while traces are made."""

    progress: Progress
    """What their episodes are doing."""
    done: int = 0
    """Traces that are made, those of earlier starts included."""
    verified: int = 0
    """Of these, the ones that are right."""

    def __str__(self) -> str:
        return f"{self.verified} of {self.done} verified; {self.progress}"


async def make_traces(
    settings: Settings,
    run: Run,
    rules: Rules,
    sources: Sequence[Source],
    rewriter: Policy | TextPolicy | None,
    sandbox: Sandbox,
) -> list[Transcript | Drop]:
    """An episode for each source, in order, or that the API refused it.

    Those of an earlier start are taken from the run's record; the others are added.

    Raises:
        SettingsError: If an API refuses every line, or too many one after the other (`REFUSALS`); those are then not dropped.
        ConnectionError: If it can't be reached; `PermissionError` if it refuses the key.
    """
    rules = dataclasses.replace(rules, prompt_template="{query}", void_turn="end")
    by_text = dataclasses.replace(rules, max_tokens=None)  # such a policy counts no tokens
    made: dict[Problem, Transcript | Drop] = dict(recorded(run, sources))
    progress = Progress()
    progress.expect(len(sources) - len(made))
    tally = Tally(progress)
    in_a_row = 0
    most = min(max(REFUSALS, settings.in_flight), len(sources))
    slots = asyncio.Semaphore(settings.in_flight)

    def count(source: Source, transcript: Transcript) -> None:
        tally.verified += verify(transcript, source.said, settings.keep_contradictions) is None
        tally.done += 1
        bar.show(tally.done, {"verified": tally.verified / tally.done})

    async def make(index: int) -> None:
        nonlocal in_a_row
        source = sources[index]
        policy: Any = Replay(source.said) if source.said else rewriter
        fitting = by_text if isinstance(policy, TextPolicy) else rules
        async with slots:
            engine = RolloutEngine(policy, fitting, sandbox, progress=progress)
            try:
                transcript = await engine.episode(source.problem, (settings.seed, index))
            except RequestRefused as error:
                in_a_row += 1
                if in_a_row >= most:
                    raise SettingsError(f"rewriter: {source.problem.id}: {error}") from error
                made[source.problem] = Drop("refused", str(error))
                tally.done += 1
                bar.show(tally.done, {"verified": tally.verified / tally.done})
                return
            except ValueError as error:
                if policy is not rewriter or isinstance(policy, TransformersPolicy):
                    raise  # there is no API in it
                raise SettingsError(f"rewriter: {source.problem.id}: {error}") from error
        in_a_row = 0
        made[source.problem] = transcript
        progress.finished(transcript)
        if transcript.stop_reason is not StopReason.INFRASTRUCTURE:
            run.write([transcript])
        count(source, transcript)

    with Bar("cold start", len(sources), live=tally) as bar:
        left = [i for i, source in enumerate(sources) if source.problem not in made]
        for source in (source for source in sources if source.problem in made):
            count(source, made[source.problem])
        bar.set_total(len(sources), len(sources) - len(left))
        await asyncio.gather(*map(make, left))
    return [made[source.problem] for source in sources]


def recorded(run: Run, sources: Sequence[Source]) -> dict[Problem, Transcript]:
    """The episodes of earlier starts, of lines that have not changed since, whatever their place in the file is now.

    None is removed from the record: they were paid for, and a line that is gone may come back.
    """
    cure = "delete that line: what it was made of is then done again"
    past = list(read_episodes(run.transcripts, cure, appended=True))
    if past:
        write_transcripts_atomically(run.transcripts, past)  # without what was cut short
    of_line: dict[Problem, list[Transcript]] = {}
    for transcript in reversed(past):
        of_line.setdefault(_nameless(transcript.problem), []).append(transcript)
    found = {}
    for source in sources:
        if same := of_line.get(_nameless(source.problem)):
            found[source.problem] = dataclasses.replace(same.pop(), problem=source.problem)
    return found


def _nameless(problem: Problem) -> Problem:
    """Without its id, which may be its line's number."""
    return dataclasses.replace(problem, id="-")


def write_result(
    settings: Settings,
    folder: Path,
    sources: Sequence[Source],
    transcripts: Sequence[Transcript | Drop],
) -> None:
    """Write the files, and show the table.

    Raises:
        SettingsError: If no trace is right.
        PolicyUnavailable: If some could not be made.
    """
    kept, dropped, made_up, differ, failed = [], [], 0, 0, 0
    calls: list[bool] = []
    for source, transcript in zip(sources, transcripts, strict=True):
        if isinstance(transcript, Drop):
            asked = [{"role": "user", "content": source.prompt}]
            dropped.append({**dataclasses.asdict(transcript), **source.known, "messages": asked})
            continue
        if transcript.stop_reason is StopReason.INFRASTRUCTURE:
            failed += 1
            continue
        pairs = results(transcript, source.said)
        made_up += len(pairs)
        differ += sum(not agrees(*pair) for pair in pairs)
        drop = verify(transcript, source.said, settings.keep_contradictions)
        response = "".join(text for _, text in written(transcript))
        said = [("user", source.prompt), ("assistant", response)]
        row = {
            **source.known,
            "messages": [{"role": role, "content": content} for role, content in said],
        }
        if drop is None:
            kept.append(row)
            calls += [call.ok for call in transcript.calls]
        else:
            dropped.append({**dataclasses.asdict(drop), **row})
    report = {
        "lines": len(sources),
        "verified": len(kept),
        "dropped": dict(Counter(row["reason"] for row in dropped).most_common()),
        "failed": failed,
        "answers_unchecked": sum("answer" not in row for row in kept),
        "programs": {"run": len(calls), "failed": len(calls) - sum(calls)},
        "made_up_results": {"all": made_up, "contradicted": differ},
    }
    for name, rows in (("data.jsonl", kept), ("dropped.jsonl", dropped)):
        lines = (json.dumps(row) + "\n" for row in rows)
        write_atomically(folder / name, "".join(lines))
    write_atomically(folder / "report.json", json.dumps(report, indent=2) + "\n")
    print(table(report))
    if failed:
        raise PolicyUnavailable(
            f"{failed} of {len(sources)} lines could not be done, because the API or the sandbox failed; the others are in "
            f"{folder / 'data.jsonl'}"
        )
    if not kept:
        raise SettingsError(f"no trace was verified: {folder / 'dropped.jsonl'} says why of each")


def read_report(folder: Path) -> dict[str, Any]:
    """The report of a finished run.

    Raises:
        SettingsError: If it is damaged.
    """
    path, cure = folder / "report.json", f"delete {folder / 'done'}: --resume then writes it anew"
    report = read_object(path, cure)
    kinds: dict[str, Any] = dict.fromkeys(("lines", "verified", "failed", "answers_unchecked"), int)
    parts = {"dropped": {}, "programs": {"run": int, "failed": int}}
    parts["made_up_results"] = {"all": int, "contradicted": int}
    try:
        check_kinds(report, kinds | dict.fromkeys(parts, dict[str, int]), [*kinds, *parts])
        for name, of in parts.items():
            check_kinds(report[name], of, of)
    except ValueError as error:
        raise damaged(path, str(error), cure) from None
    return report


def table(report: Mapping[str, Any]) -> str:
    """The report as a Markdown table and what goes with it."""
    rows = {"verified": report["verified"]}
    rows |= {f"dropped: {reason}": count for reason, count in report["dropped"].items()}
    if report["failed"]:
        rows["not done: API or sandbox failed"] = report["failed"]
    rows["lines"] = report["lines"]
    width = max(map(len, rows))
    lines = [f"| {'':{width}} | traces |", f"|{'-' * (width + 2)}|-------:|"]
    lines += [f"| {name:{width}} | {count:6} |" for name, count in rows.items()]
    programs, made_up = report["programs"], report["made_up_results"]
    lines += [
        "",
        f"programs in those verified: {programs['run']}, of which {programs['failed']} failed",
    ]
    if made_up["all"]:
        lines.append(
            f"results that were made up: {made_up['all']}, of which {made_up['contradicted']} differ from the real ones"
        )
    if report["answers_unchecked"]:
        lines.append(f"verified without a known answer: {report['answers_unchecked']}")
    return "\n".join(lines) + "\n"
