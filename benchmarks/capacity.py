"""How long the rollouts of a large step take, and what they need: with barriers each turn, without, and with a deadline.

    python -m benchmarks.capacity
    python -m benchmarks.capacity --gpus 8 --calls 6

A simulation of discrete events, so an hour on 16 GPUs takes seconds here. What a program costs in the sandbox is the
measured figure of `benchmarks/results/sandbox.json`; all else is assumed, printed with the result, and can be set. The
figures go to `benchmarks/results/capacity.json`, a picture of the busy GPUs to `benchmarks/results/capacity.png`.

Two kinds of barriers are simulated: one over all GPUs, as where one process drives them all, and one on each GPU, as where each
is a rank that samples its own part (TRL, colocated). In favour of both, a turn's programs run side by side, while TRL runs
those of a rank one after the other.
"""

import argparse
import dataclasses
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from benchmarks.parts.chains import Chain
from benchmarks.parts.results import RESULTS, write_results
from benchmarks.parts.step import Barrier, Course, Load, Step, draw_chains

BARRIERS: dict[str, Barrier] = {"barrier over all": "all", "barrier a GPU": "gpu"}
FREE, CUT = "no barrier", "no barrier, deadline"

TOLERATED = 0.01
"""Share of its time that a step may take longer for want of workers."""


def compare(load: Load, chains: Sequence[Chain]) -> dict[str, Course]:
    """The same episodes with barriers, without, and without but with a deadline."""
    free = Step(load, chains, None).run()
    deadline = load.deadline or free.ends[_share(load, chains) - 1]
    return {
        **{name: Step(load, chains, barrier).run() for name, barrier in BARRIERS.items()},
        FREE: free,
        CUT: Step(load, chains, None, deadline).run(),
    }


def _share(load: Load, chains: Sequence[Chain]) -> int:
    """Number of episodes that the deadline waits for."""
    return math.ceil(load.deadline_share * len(chains))


@dataclass(frozen=True)
class Needed:
    """What suffices in the sandbox for a step that takes little longer than with no bound on programs."""

    workers: int
    """Programs that run at once."""
    programs_per_second: int
    """Begun within one second then, at most."""


def needed(load: Load, chains: Sequence[Chain], courses: dict[str, Course]) -> dict[str, Needed]:
    """The fewest workers with which a step takes at most 1 % longer (`TOLERATED`) than without a bound.

    Of the deadline's, which ends when it ends: with which the share that it waits for is done as early.
    """
    found = {}
    for name, free in courses.items():
        barrier = BARRIERS.get(name)
        episode = (_share(load, chains) if name == CUT else len(chains)) - 1
        limit = (1 + TOLERATED) * (courses[FREE] if name == CUT else free).ends[episode]
        few, enough = 0, max(1, free.programs)
        course = free
        while enough - few > 1:
            workers = (few + enough) // 2
            bounded = Step(dataclasses.replace(load, workers=workers), chains, barrier).run()
            if bounded.ends[episode] <= limit:
                enough, course = workers, bounded
            else:
                few = workers
        found[name] = Needed(enough, course.programs_per_second)
    return found


@dataclass(frozen=True)
class Measured:
    """What the sandbox costs, from the file that `benchmarks.sandbox` wrote."""

    seconds: float
    """Added to each program: a small `sympy.solve`, median."""
    processor_seconds: float
    """Of processors, for each program, when saturated with the same."""
    source: str
    """Which measurement it is."""

    @classmethod
    def read(cls, path: Path) -> "Measured":
        """Read the file.

        Raises:
            ValueError: If it is missing, or another kind of file.
        """
        try:
            report = json.loads(path.read_text())
            processors = int(report["device"].split()[0])
            return cls(
                report["latency"]["sympy.solve, 20 ms pauses"]["the pool"]["p50_ms"] / 1000,
                processors / report["programs_per_second"]["sympy.solve, 64 at once"],
                f"{path.name}, {report['date'][:10]}, {report['device']}",
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path} is no result of `python -m benchmarks.sandbox` ({error!r}): run that first"
            ) from error


def table(
    courses: dict[str, Course], needs: dict[str, Needed], measured: Measured, episodes: int
) -> str:
    """The figures as text."""
    rows = {
        "step time, minutes": [f"{c.seconds / 60:.1f}" for c in courses.values()],
        "GPUs' time without a row": [f"{c.idle:.1%}" for c in courses.values()],
        "rows of a GPU, on average": [f"{c.rows:.1f}" for c in courses.values()],
        "tokens a second, all GPUs": [f"{c.tokens_per_second:,.0f}" for c in courses.values()],
        "sandbox workers, for at most 1 % more time": [f"{n.workers}" for n in needs.values()],
        "programs begun in a second then, at most": [
            f"{n.programs_per_second}" for n in needs.values()
        ],
        "processors for the sandbox's own cost then": [
            f"{processors(n, measured)}" for n in needs.values()
        ],
        "programs at once, were there no bound": [f"{c.programs}" for c in courses.values()],
        "episodes cut": [f"{c.cut} ({c.cut / episodes:.1%})" for c in courses.values()],
    }
    lines = [f"{'':<44}" + "".join(f"{name:>22}" for name in courses)]
    lines += [f"{name:<44}" + "".join(f"{cell:>22}" for cell in row) for name, row in rows.items()]
    return "\n".join(lines)


def processors(need: Needed, measured: Measured) -> int:
    """Processors that the sandbox itself takes in the busiest second; what programs compute comes on top."""
    return math.ceil(need.programs_per_second * measured.processor_seconds)


def draw(courses: dict[str, Course], gpus: int, path: Path) -> None:
    """Draw the busy GPUs over time, a panel each.

    Args:
        courses: What came of the step, by the name to show.
        gpus: How many there are.
        path: Of the PNG.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        len(courses), 1, figsize=(8, 1.6 * len(courses)), sharex=True, squeeze=False
    )
    for axis, (name, course) in zip(axes[:, 0], courses.items(), strict=True):
        seconds, busy = zip(*course.busy, (course.seconds, 0), strict=True)
        minutes = [second / 60 for second in seconds]
        axis.fill_between(minutes, busy, step="post", color="C0", alpha=0.6, linewidth=0)
        cut = f", {course.cut} episodes cut" if course.cut else ""
        title = f"{name}: {course.seconds / 60:.0f} minutes, {course.idle:.0%} idle{cut}"
        axis.set_title(title, fontsize=9, loc="left")
        axis.set_ylabel("busy GPUs", fontsize=8)
        axis.set_ylim(0, gpus * 1.05)
    axes[-1, 0].set_xlabel("minutes")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main(arguments: list[str] | None = None) -> int:
    """Runs the simulation; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for each in fields(Load):
        name, default = "--" + each.name.replace("_", "-"), each.default
        meaning = f"{each.metadata['help']} ({default})"
        parser.add_argument(name, type=type(default), default=default, help=meaning, metavar="N")
    parser.add_argument("--sandbox", type=Path, default=RESULTS / "sandbox.json", help="measured")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the figures")
    parser.add_argument("--no-picture", action="store_true", help="needs no matplotlib")
    options = vars(parser.parse_args(arguments))
    out, sandbox, no_picture = (options.pop(name) for name in ("out", "sandbox", "no_picture"))
    try:
        load, measured = Load(**options), Measured.read(sandbox)
    except ValueError as error:
        parser.error(str(error))
    chains = draw_chains(load, measured.seconds)
    courses = compare(load, chains)
    needs = needed(load, chains, courses)
    report = {
        "simulated": True,
        "assumptions": asdict(load),
        "measured": asdict(measured),
        "courses": {
            name: {
                **{key: v for key, v in asdict(course).items() if key not in ("ends", "busy")},
                "needed": {**asdict(needs[name]), "processors": processors(needs[name], measured)},
            }
            for name, course in courses.items()
        },
    }
    write_results(out / "capacity.json", report)
    print("A simulation. Measured:")
    print(
        f"{measured.seconds:>12.4g}  seconds that the sandbox adds to a program ({measured.source})"
    )
    print(f"{measured.processor_seconds:>12.4g}  seconds of a processor for that")
    print("Assumed:")
    for each in fields(Load):
        print(f"{getattr(load, each.name):>12}  {each.metadata['help']}")
    print(
        "        also: every cache is kept until its episode ends; a barrier's programs run side by side; the update of the "
        "weights comes on top\n"
    )
    print(table(courses, needs, measured, len(chains)))
    if not no_picture:
        draw(courses, load.gpus, out / "capacity.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
