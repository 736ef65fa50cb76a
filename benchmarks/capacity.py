"""Simulates the rollouts of a large step: with barriers, without barriers, and with a deadline.

    python -m benchmarks.capacity
    python -m benchmarks.capacity --gpus 8 --calls 6

This is a simulation of discrete events, so an hour on 16 GPUs takes seconds. The cost of a program
in the sandbox is measured (`benchmarks/results/sandbox.json`). All other values are assumptions,
which are printed and can be set. The figures go to `benchmarks/results/capacity.json`, and a
picture of the busy GPUs to `benchmarks/results/capacity.png`.

There are two kinds of barriers: one over all GPUs, if one process drives all GPUs, and one per GPU,
if each GPU is a rank that samples its part of the batch (TRL, colocated). In favour of both, the
programs of a turn run side by side; TRL runs the programs of a rank one after the other.
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
from retool_env.pictures import BLUE, picture, whole_numbers

BARRIERS: dict[str, Barrier] = {"barrier over all": "all", "barrier a GPU": "gpu"}
FREE, CUT = "no barrier", "no barrier, deadline"

TOLERATED = 0.01
"""The share by which a lack of workers may lengthen a step."""


def compare(load: Load, chains: Sequence[Chain]) -> dict[str, Course]:
    """Simulate the same episodes with barriers, without a barrier, and with a deadline."""
    free = Step(load, chains, None).run()
    deadline = load.deadline or free.ends[_share(load, chains) - 1]
    return {
        **{name: Step(load, chains, barrier).run() for name, barrier in BARRIERS.items()},
        FREE: free,
        CUT: Step(load, chains, None, deadline).run(),
    }


def _share(load: Load, chains: Sequence[Chain]) -> int:
    """The number of episodes that the deadline waits for."""
    return math.ceil(load.deadline_share * len(chains))


@dataclass(frozen=True)
class Needed:
    """The sandbox capacity with which a step takes at most 1 % longer (`TOLERATED`)."""

    workers: int
    """The number of programs that run at once."""
    programs_per_second: int
    """The maximum number of programs that begin within one second."""


def needed(load: Load, chains: Sequence[Chain], courses: dict[str, Course]) -> dict[str, Needed]:
    """Find the smallest number of workers with which a step takes at most 1 % longer (`TOLERATED`).

    With a deadline, the time counts until the share of episodes that it waits for has ended.

    Args:
        load: The assumptions.
        chains: The episodes.
        courses: The results of `compare`, without a limit on programs.

    Returns:
        The sandbox capacity by the name of the course.
    """
    needs = {}
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
        needs[name] = Needed(enough, course.programs_per_second)
    return needs


@dataclass(frozen=True)
class Measured:
    """The measured cost of the sandbox, from the result file of `benchmarks.sandbox`."""

    seconds: float
    """The median overhead of a program with a small `sympy.solve`, in seconds."""
    processor_seconds: float
    """Processor time per program, if the machine is saturated with such programs."""
    source: str
    """The file, date and device of the measurement."""

    @classmethod
    def read(cls, path: Path) -> "Measured":
        """Read a result file.

        Raises:
            ValueError: If the file is missing, or not a result of `benchmarks.sandbox`.
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
                f"{path} is not a result of benchmarks.sandbox ({error!r}); make one: "
                "python -m benchmarks.sandbox"
            ) from error


def table(
    courses: dict[str, Course], needs: dict[str, Needed], measured: Measured, episodes: int
) -> str:
    """The figures as text.

    Args:
        courses: The result of `compare`.
        needs: The result of `needed`.
        measured: The measured cost of the sandbox.
        episodes: The number of episodes of the step.
    """
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
        "programs at once, without a limit": [f"{c.programs}" for c in courses.values()],
        "episodes cut": [f"{c.cut} ({c.cut / episodes:.1%})" for c in courses.values()],
    }
    lines = [f"{'':<44}" + "".join(f"{name:>22}" for name in courses)]
    lines += [f"{name:<44}" + "".join(f"{cell:>22}" for cell in row) for name, row in rows.items()]
    return "\n".join(lines)


def processors(need: Needed, measured: Measured) -> int:
    """The processors that the sandbox's overhead needs in the busiest second."""
    return math.ceil(need.programs_per_second * measured.processor_seconds)


def draw(courses: dict[str, Course], gpus: int, path: Path) -> None:
    """Draw the busy GPUs over time, one panel per course.

    Args:
        courses: The result of `compare`; the names are the titles.
        gpus: The number of GPUs.
        path: The PNG file.
    """
    with picture(len(courses), 1, (7.2, 1.6 * len(courses)), sharex=True) as made:
        for axis, (name, course) in zip(made.axes[:, 0], courses.items(), strict=True):
            seconds, busy = zip(*course.busy, (course.seconds, 0), strict=True)
            minutes = [second / 60 for second in seconds]
            axis.fill_between(minutes, busy, step="post", color=BLUE, alpha=0.6, linewidth=0)
            cut = f", {course.cut} episodes cut" if course.cut else ""
            title = f"{name}: {course.seconds / 60:.0f} minutes, {course.idle:.0%} idle{cut}"
            axis.set_title(title, loc="left")
            axis.set_ylabel("busy GPUs")
            axis.set_ylim(0, gpus * 1.05)
            whole_numbers(axis.yaxis)
        made.axes[-1, 0].set_xlabel("minutes")
    path.write_bytes(made.png)


def main(arguments: list[str] | None = None) -> int:
    """Run the simulation, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for assumption in fields(Load):
        name, default = "--" + assumption.name.replace("_", "-"), assumption.default
        meaning = f"{assumption.metadata['help']} ({default})"
        parser.add_argument(name, type=type(default), default=default, help=meaning, metavar="N")
    parser.add_argument("--sandbox", type=Path, default=RESULTS / "sandbox.json", help="costs")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of figures")
    parser.add_argument("--no-picture", action="store_true", help="skip the picture and matplotlib")
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
    print(f"{measured.processor_seconds:>12.4g}  seconds of processor time for that")
    print("Assumed:")
    for assumption in fields(Load):
        print(f"{getattr(load, assumption.name):>12}  {assumption.metadata['help']}")
    print(
        "        also: a cache is kept until its episode ends; the programs of a barrier run side "
        "by side; the update of the weights is not included\n"
    )
    print(table(courses, needs, measured, len(chains)))
    if not no_picture:
        draw(courses, load.gpus, out / "capacity.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
