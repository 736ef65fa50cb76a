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
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from agents.base.board import Bar
from agents.base.fields import RunSettings
from agents.base.model import load_model
from agents.base.records import read_episodes, write_transcripts_atomically
from agents.base.run import Run
from agents.base.session import Session
from agents.base.settings import SettingsError, check_least, setting
from agents.traces.report import read_report, table, write_result
from agents.traces.sources import Source, read_sources
from agents.traces.verification import Drop, Parts, verify
from retool_env.execution import Sandbox
from retool_env.problem import Problem
from retool_env.rollout import Policy, RolloutEngine, TextGeneration, TextPolicy
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


@dataclass(frozen=True)
class Settings(RunSettings):
    """Settings of the rewriting."""

    name: str = "coldstart"
    env: dict[str, Any] = setting(
        {"id": "ReTool-Arithmetic-v0"},
        "the environment that is trained in later: its rules hold for the traces, and rewritten solutions get its prompt",
    )
    data: str | None = setting(
        None, "JSON lines of question, answer and solution, or of rewritten traces as messages"
    )
    model: str | None = setting(
        None, "the rewriter: a name at its API, a folder or a Hub id; rewritten traces need none"
    )
    rewriter: str | dict[str, Any] = setting("transformers", REWRITER)
    dtype: str = setting("float32", "of a rewriter's weights in transformers")
    temperature: float = setting(0.7, "of the rewriter's sampling")
    in_flight: int = setting(32, "traces in the making at once")
    require_answer: bool = setting(
        True,
        "refuse rewritten traces that come without a known answer; false: take them, their answers unchecked",
    )
    keep_contradictions: bool = setting(
        False, "keep traces whose made-up results differ from the real ones, as the paper does"
    )


def train(settings: Settings, folder: Path, resume: bool = False) -> Path:
    """Make the traces that are not made yet, and verify all.

    Returns:
        The file of those that are right.

    Raises:
        SettingsError: If the input can't be used, the rewriter refuses, or no trace is right.
        PolicyUnavailable: If some could not be made, because the API or the sandbox failed. The others are written.
    """
    check_least(settings, {"in_flight": 1, "temperature": 0})
    with Session(settings, folder, resume) as run:
        result = folder / "data.jsonl"
        if run.finished:
            print(table(read_report(folder)))
            return result
        if settings.data is None:
            raise SettingsError("data: name a file of JSON lines, data=solutions.jsonl")
        rules = run.rules
        if not rules.interpreter or rules.protocol != "tags":
            raise SettingsError(
                "env: a cold start with code needs interpreter=true and protocol=tags"
            )
        sources = read_sources(Path(settings.data), rules, settings.require_answer)
        sandbox = run.open_sandbox()
        assert sandbox is not None  # with an interpreter there is one
        rewriter = None
        if not all(source.said for source in sources):
            rewriter = make_rewriter(settings)
            run.resources.enter_context(rewriter)
        run.start()
        transcripts = asyncio.run(make_traces(settings, run, rules, sources, rewriter, sandbox))
        if isinstance(rewriter, TextPolicy) and rewriter.usage:
            print(f"the API in this start: {rewriter.usage}")
        write_result(folder, sources, transcripts, settings.keep_contradictions)
    return result


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
            # transformers' wrapper of `to` takes its argument for the model.
            loaded = loaded.to(torch.accelerator.current_accelerator())  # type: ignore[arg-type]  # there is one
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
        for source in sources:
            if isinstance(transcript := made.get(source.problem), Transcript):
                count(source, transcript)
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
