"""Cold start: turns text-only solutions into traces that use the interpreter (ReTool, section 2.2).

`sft.py` trains on these traces. The input is a file of JSON lines of two kinds:

- A question with its answer and a solution in words (columns `question`, `answer`, `solution`; for
  the first two also the other names that `retool_env.problems.json_lines` knows). If the answer is
  worked out as in GSM8K, its working is the solution. A language model, the rewriter, writes the
  solution again with code, in an ordinary episode: its turn ends at `</code>`, the program runs in
  the sandbox, and the rewriter continues from the real output.
- A trace that was rewritten before, in the form of the paper's data set (`messages` with tags),
  whose results a language model made up. It is replayed: each code block runs, and the real result
  replaces the text in `<interpreter>`.

In both cases an `Episode` renders the results in the same form as in training. Then each trace is
verified; `agents.traces.verification` lists the reasons to drop a trace.

The run's folder holds, besides its settings:

data.jsonl         the verified traces, for `python -m agents sft data=...`, in the input's order
dropped.jsonl      the other traces, with their reasons
report.json        counts
transcripts.jsonl  all episodes; `--resume` does not repeat them
"""

from __future__ import annotations

import asyncio
import dataclasses
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
from agents.base.settings import SettingsError, check_least, read_variable, setting
from agents.base.sharding import read_by_all
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
from retool_env.servers.address import shown_url
from retool_env.transcript import StopReason, Transcript

ONE_PROCESS = True
"""Whether the algorithm must run in one process: the command refuses several."""

TRAINS_MODEL = False
"""Whether `model` is trained. It is the rewriter, so the environment is not taken from its task."""

REFUSALS = 8
"""If an API refuses this many lines in a row, and at least `in_flight`, a setting is wrong."""


@dataclass(frozen=True)
class Settings(RunSettings):
    """Settings of the rewriting."""

    name: str = "coldstart"
    env: dict[str, Any] = setting(
        {"id": "ReTool-Arithmetic-v0"},
        "the environment of the later training: its rules hold for the traces, and solutions get "
        "its prompt",
    )
    data: str | None = setting(
        None, "JSON lines of question, answer and solution, or of rewritten traces as messages"
    )
    model: str | None = setting(
        None, "the rewriter: a name at its API, a folder or a Hub id; unused by rewritten traces"
    )
    rewriter: str | dict[str, Any] = setting(
        "transformers",
        "the rewriter's engine: transformers or vllm in this process, an API's http://.../v1, or a "
        "mapping {name: one of these, and arguments of its policy; for an API also api_key_env, "
        "the variable that holds the key}",
    )
    dtype: str = setting("float32", "data type of a rewriter's weights in transformers")
    temperature: float = setting(0.7, "sampling temperature of the rewriter")
    in_flight: int = setting(32, "number of traces made at the same time")
    require_answer: bool = setting(
        True, "refuse rewritten traces without a known answer; false: keep them, unchecked"
    )
    keep_contradictions: bool = setting(
        False, "keep traces whose made-up results differ from the real ones, as the paper does"
    )


def train(settings: Settings, folder: Path, resume: bool = False) -> Path:
    """Make the traces that are not made yet, and verify all traces.

    Args:
        settings: The run's settings.
        folder: The run's folder.
        resume: Whether to continue the run in the folder.

    Returns:
        The file of the verified traces.

    Raises:
        SettingsError: If the input can't be used, the rewriter refuses, or no trace is right.
        PolicyUnavailable: If some traces could not be made, because the API or the sandbox failed.
            The other traces are written.
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
        assert sandbox is not None  # it is open, since the rules have an interpreter
        rewriter = None
        if not all(source.parts for source in sources):
            rewriter = make_rewriter(settings)
            run.resources.enter_context(rewriter)
        run.start()
        transcripts = run.stopping.run(
            make_traces(settings, run, rules, sources, rewriter, sandbox)
        )
        if isinstance(rewriter, TextPolicy) and rewriter.usage:
            print(f"the API in this start: {rewriter.usage}")
        write_result(folder, sources, transcripts, settings.keep_contradictions)
    return result


def make_rewriter(settings: Settings) -> Policy | TextPolicy:
    """The policy of the rewriter.

    Raises:
        SettingsError: If no model is named, or the setting `rewriter` is wrong.
        ImportError: If a package is missing that the policy needs.
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
        key = None if variable is None else read_variable("rewriter.api_key_env", variable)
        sampling = {"concurrency": settings.in_flight, **sampling, "api_key": key, "urls": name}
        name = "openai"
    elif name == "transformers":
        with read_by_all():
            loaded, tokenizer = load_model(settings.model, settings.dtype)
        if torch.accelerator.is_available():
            device: Any = torch.accelerator.current_accelerator()
            loaded = loaded.to(device)
        model = Model(settings.model, loaded, tokenizer)
    elif name not in POLICIES or name in SERVED:
        names = ", ".join(known for known in POLICIES if known not in SERVED)
        raise SettingsError(
            f"rewriter: {shown_url(name)!r} is unknown; take {names}, or an API's http://.../v1"
        )
    try:
        return make_policy(name, model, **sampling)
    except SettingsError as error:
        raise SettingsError(f"rewriter: {error}") from error


class Replay(TextPolicy):
    """Replays a trace turn by turn: a policy of text without a model.

    Args:
        parts: The parts of the trace, with their authors. The environment's parts are left out.
    """

    def __init__(self, parts: Parts) -> None:
        first, *later = (text for author, text in parts if author == "model")
        # The environment writes the line breaks behind a result.
        self._turns = [first, *(text.lstrip() for text in later)]

    async def write(self, transcript: Transcript, stop: Sequence[str], seed: int) -> TextGeneration:
        """The next turn of the trace; an empty turn after the last.

        Args:
            transcript: The transcript so far.
            stop: The tags that end a turn.
            seed: The seed of the turn, which a replay does not need.
        """
        number = sum(span.author == "model" for span in transcript.spans)
        text = self._turns[number] if number < len(self._turns) else ""
        return TextGeneration(text, "tag" if any(tag in text for tag in stop) else "eos")


@dataclass
class Tally:
    """The counts that are shown while traces are made."""

    progress: Progress
    """The state of the episodes in flight."""
    done: int = 0
    """Finished traces, with the traces of earlier starts."""
    verified: int = 0
    """Finished traces that were verified."""

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
    """Make an episode for each source.

    Episodes of an earlier start are taken from the run's record; new episodes are added to it.

    Args:
        settings: The run's settings.
        run: The run.
        rules: The rules of the environment of the later training.
        sources: The lines of the input.
        rewriter: The rewriter's policy; `None`: all sources are rewritten traces.
        sandbox: The sandbox for programs.

    Returns:
        For each source its episode, or a `Drop` if the API refused the line.

    Raises:
        SettingsError: If an API refuses every line, or too many lines in a row (`REFUSALS`). These
            lines are not dropped.
        ConnectionError: If an API can't be reached.
        PermissionError: If an API refuses the key.
    """
    rules = dataclasses.replace(rules, prompt_template="{query}", void_turn="end")
    by_text = dataclasses.replace(rules, max_tokens=None)  # a policy of text counts no tokens
    made: dict[Problem, Transcript | Drop] = dict(recorded(run, sources))
    progress = Progress()
    progress.expect(len(sources) - len(made))
    tally = Tally(progress)
    in_a_row = 0
    most = min(max(REFUSALS, settings.in_flight), len(sources))
    slots = asyncio.Semaphore(settings.in_flight)

    def count(verified: bool) -> None:
        tally.verified += verified
        tally.done += 1
        bar.show(tally.done, {"verified": tally.verified / tally.done})

    def is_right(source: Source, transcript: Transcript) -> bool:
        return verify(transcript, source.parts, settings.keep_contradictions) is None

    async def make(index: int) -> None:
        nonlocal in_a_row
        source = sources[index]
        policy: Any = Replay(source.parts) if source.parts else rewriter
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
                count(verified=False)
                return
            except ValueError as error:
                if policy is not rewriter or isinstance(policy, TransformersPolicy):
                    raise  # no API caused the error
                raise SettingsError(f"rewriter: {source.problem.id}: {error}") from error
        in_a_row = 0
        made[source.problem] = transcript
        progress.finished(transcript)
        if transcript.stop_reason is not StopReason.INFRASTRUCTURE:
            run.write([transcript])
        count(is_right(source, transcript))

    with Bar("cold start", len(sources), live=tally) as bar:
        left = [i for i, source in enumerate(sources) if source.problem not in made]
        for source in sources:
            if isinstance(transcript := made.get(source.problem), Transcript):
                count(is_right(source, transcript))
        bar.set_total(len(sources), len(sources) - len(left))
        await asyncio.gather(*map(make, left))
    return [made[source.problem] for source in sources]


def recorded(run: Run, sources: Sequence[Source]) -> dict[Problem, Transcript]:
    """The episodes of earlier starts for lines that have not changed, by the sources' problems.

    A line may have moved within the file. No episode is removed from the record: episodes may have
    cost money, and a line that was deleted may come back.

    Args:
        run: The run, with its record of episodes.
        sources: The lines of the input.
    """
    cure = "delete that line, so that its trace is made again"
    past = list(read_episodes(run.transcripts, cure, appended=True))
    if past:
        write_transcripts_atomically(run.transcripts, past)  # without a last line that was cut
    of_line: dict[Problem, list[Transcript]] = {}
    for transcript in reversed(past):
        of_line.setdefault(_nameless(transcript.problem), []).append(transcript)
    episodes = {}
    for source in sources:
        if same := of_line.get(_nameless(source.problem)):
            episodes[source.problem] = dataclasses.replace(same.pop(), problem=source.problem)
    return episodes


def _nameless(problem: Problem) -> Problem:
    """The problem without its id, which may be its line's number."""
    return dataclasses.replace(problem, id="-")
