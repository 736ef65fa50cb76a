"""Runs the jobs of a design: whole episodes, then the first fork of each arm, then the others."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from retool_env.episode import Episode
from retool_env.errors import NotReproducible, RequestRefused
from retool_env.evaluation.recover.protocols import PARENTS, Design, Job, injected, prefix_jobs
from retool_env.evaluation.recover.protocols import run_job as run_one
from retool_env.evaluation.recover.records import (
    ArmRecord,
    ArmRecords,
    LeftOut,
    read_arms,
    read_left_out,
)
from retool_env.evaluation.run import FEWEST_REFUSED, run_all
from retool_env.rollout.engine import RolloutEngine, run_blocking
from retool_env.transcript import StopReason, Transcript

_log = logging.getLogger(__name__)


@dataclass
class DesignRun:
    """One model's run of a design."""

    design: Design
    """The design."""
    engines: Mapping[tuple[str, str], RolloutEngine]
    """The engine of each arm of whole episodes. All share one `Progress`."""
    records: ArmRecords
    """The folder, open for writing."""
    model: str
    """The model's name, for the records."""
    seed: int
    """The seed of all sampling."""
    retry_failed: bool = False
    """Whether episodes run again that an infrastructure failure ended."""
    going_on: Callable[[], bool] = lambda: True
    """Asked before each episode begins. From its first `False` on, no further episode begins."""

    def __post_init__(self) -> None:
        ended = self.records.ended.items()
        self._again = {key for key, failed in ended if failed} if self.retry_failed else set()
        self._left_out: set[tuple[str, str, int | None, int]] = {
            (one.protocol, one.problem, one.parent, one.call)
            for one in read_left_out(self.records.folder)
        }
        self._unfit: set[tuple[str, str, str, int | None, int]] = set()
        self._parents: dict[tuple[str, int], Transcript] = {}
        self._answered = not all(self.records.ended.values())
        self._held: list[ArmRecord] = []
        self._expected = 0

    def run(self) -> bool:
        """Runs all episodes that are left.

        Returns:
            Whether every episode has run.

        Raises:
            SettingsError: A prompt fills the model's context.
            RequestRefused: An API refuses the first episodes and has never answered: then the
                settings are at fault, and not a prompt.
        """
        for engine in self.engines.values():
            engine.check_prompts(self.design.problems)
        complete = self._run(self.design.whole_jobs(self.engines))
        if not complete or not self.design.forks:
            return complete
        for record in read_arms(self.records.folder):
            if (record.protocol, record.arm) == PARENTS:
                self._parents[record.problem, record.sample] = record.transcript
            else:
                self._note_eligibility(record)
        return all(
            self._run(prefix_jobs(self.design, self._parents, first)) for first in (True, False)
        )

    def _note_eligibility(self, record: ArmRecord) -> None:
        if not injected(record.transcript):
            self._unfit.add(record.key[:-1])

    def _run(self, jobs: Iterable[Job]) -> bool:
        settled = self.records.ended.keys() - self._again
        left = [
            job
            for job in jobs
            if job.key not in settled
            and (job.key[:-1] not in self._unfit or job.key in self._again)
            and job.prefix not in self._left_out
        ]
        some = next(iter(self.engines.values()))
        some.progress.expect(len(left))
        self._expected, self._most_held = len(left), max(FEWEST_REFUSED, some.concurrency)
        complete = run_blocking(run_all(self._one, left, some.concurrency, self.going_on))
        self._release()
        return complete

    async def _one(self, job: Job) -> None:
        whole = job.parent is None
        engine = self.engines[(job.protocol, job.arm) if whole else PARENTS]
        parent = None if job.parent is None else self._parents[job.problem.id, job.parent]
        begun: list[Episode] = []
        refusal = None
        try:
            transcript, usage = await run_one(engine, job, self.seed, parent, begun.append)
        except NotReproducible as reason:
            engine.progress.expect(-1)
            self._leave_out(job, str(reason))
            return
        except RequestRefused as error:
            begun[-1].cut(StopReason.INFRASTRUCTURE)
            transcript, usage, refusal = begun[-1].transcript, None, str(error)
            if not self._answered and len(self._held) + 1 >= min(self._most_held, self._expected):
                raise
        engine.progress.finished(transcript)
        record = ArmRecord(
            self.model,
            job.problem.id,
            job.sample,
            self.seed,
            transcript,
            usage,
            error=refusal,
            protocol=job.protocol,
            arm=job.arm,
            parent=job.parent,
            call=job.call,
        )
        self._held.append(record)
        self._answered |= refusal is None
        if self._answered:
            self._release()

    def _release(self) -> None:
        """Writes the episodes that have ended: refused ones wait for the first answer."""
        while self._held:
            record = self._held.pop(0)
            if record.error is not None:
                _log.warning("%s: failed: %s", record.problem, record.error)
            self.records.append(record)
            self._note_eligibility(record)

    def _leave_out(self, job: Job, reason: str) -> None:
        if job.prefix not in self._left_out:
            self._left_out.add(job.prefix)
            prefix = LeftOut(job.protocol, job.problem.id, job.parent or 0, job.call, reason)
            self.records.leave_out(prefix)
