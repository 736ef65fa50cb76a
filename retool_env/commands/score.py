"""`retool score`: the answers of a recorded run, graded anew by another grader."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from retool_env.errors import SettingsError
from retool_env.printable import one_line

if TYPE_CHECKING:
    from retool_env.evaluation.score import Rescored, Scores
    from retool_env.metrics.figures import Figure

MOST_ROWS = 50
"""The largest number of changed episodes that the command prints. The file has all of them."""

MOST_ERRORS = 5
"""The largest number of errors of a grader that the command prints. The file has all of them."""

MOST_CHARACTERS = 60
"""The largest number of characters of an answer in the printed table."""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command's options."""
    parser = commands.add_parser(
        "score", help="the answers of a recorded run, graded anew", allow_abbrev=False
    )
    parser.add_argument("run", metavar="RUN", help="a run's folder, RUN@STEP, or a file")
    parser.add_argument(
        "--grader",
        default="math",
        help="math, the environment's own grader as it is today; exact, equal texts; or "
        "file.py:function, your own function of an answer, without its \\boxed, and a reference "
        "answer (math)",
    )
    parser.add_argument(
        "--out", type=Path, help="the file of the scores (scores-NAME.json in the run's folder)"
    )


def run(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    """`retool score`."""
    from retool_env.evaluation.folder import replace_json
    from retool_env.evaluation.progress import counted, on_stderr
    from retool_env.evaluation.runs import open_run
    from retool_env.evaluation.score import default_path, load_grader, rescored, scores, to_json

    opened = open_run(arguments.run)
    name, grade = load_grader(arguments.grader)
    out = arguments.out or default_path(opened, name)
    if out.exists():
        raise SettingsError(f"{out} exists already: remove it, or name another file with --out")
    episodes = list(counted(rescored(opened, grade, name), "episodes are graded", on_stderr))
    if not episodes:
        raise SettingsError(f"{opened.path} holds no finished episode, so nothing can be graded")
    parts = scores(episodes)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        replace_json(out, to_json(opened, arguments.grader, episodes, parts))
    finally:  # a file that can't be written hides no verdict
        _show(opened.title, arguments.grader, episodes, parts, out)
    print(f"\nscores: {out}")
    graded = any(e.verdict is not None and e.transcript.answer is not None for e in episodes)
    return int(not graded and any(e.error for e in episodes))


def _show(
    title: str, grader: str, episodes: Sequence[Rescored], parts: Sequence[Scores], out: Path
) -> None:
    print(f"{one_line(title)}: {len(episodes)} episodes, grader {grader}")
    _show_changes(episodes, out)
    _show_figures(parts)


def _show_changes(episodes: Sequence[Rescored], out: Path) -> None:
    from retool_env.metrics.tables import markdown

    changed = [episode for episode in episodes if episode.changed]
    failed = [episode for episode in episodes if episode.error]
    print(f"\n{len(changed)} of {len(episodes)} verdicts changed")
    if changed:
        cells = [["episode", "answer", "reference", "before", "after"]]
        for episode in changed[:MOST_ROWS]:
            answer, gold = episode.transcript.answer, episode.transcript.problem.answer
            verdicts = (episode.transcript.correct, episode.verdict)
            cells.append(
                [
                    one_line(episode.address, MOST_CHARACTERS),
                    _short(answer),
                    _short(gold),
                    *map(_word, verdicts),
                ]
            )
        print(f"\n{markdown(cells)}")
    if len(changed) > MOST_ROWS:
        print(f"\n{len(changed) - MOST_ROWS} more stand in {out}")
    for episode in failed[:MOST_ERRORS]:
        print(f"the grader failed on {one_line(episode.address)}: {episode.error}", file=sys.stderr)
    if failed:
        named = f"; {out} names each error" if len(failed) > MOST_ERRORS else ""
        print(f"\nthe grader failed on {len(failed)} episodes, which have no new verdict{named}")


def _show_figures(parts: Sequence[Scores]) -> None:
    from retool_env.metrics.tables import markdown

    cells = [["part", "episodes", "changed", "accuracy before", "accuracy after"]]
    for part in parts:
        before, after = (_by_key(figures)["accuracy/avg"] for figures in (part.before, part.after))
        numbers = [str(part.episodes), str(part.changed)]
        texts = [_figure(before), _figure(after)]
        cells.append([part.group or ("rollouts" if len(parts) > 1 else "all"), *numbers, *texts])
    print(f"\n{markdown(cells)}")
    if len(parts) > 1:
        return
    [part] = parts
    old, new = _by_key(part.before), _by_key(part.after)
    other = [
        [key, _figure(old[key]), _figure(new[key])]
        for key in old
        if key in new
        and new[key].mean is not None
        and old[key].mean != new[key].mean
        and key != "accuracy/avg"
    ]
    if other:
        print(f"\n{markdown([['other figures that changed', 'before', 'after'], *other])}")


def _figure(figure: Figure) -> str:
    """A figure with its interval; an accuracy in percent, as in the other commands."""
    from retool_env.evaluation.report.tables import value_text
    from retool_env.metrics.tables import interval_text

    return (value_text if figure.key.startswith("accuracy/") else interval_text)(figure)


def _by_key(figures: Sequence[Figure]) -> dict[str, Figure]:
    return {figure.key: figure for figure in figures}


def _word(verdict: bool | None) -> str:
    return {True: "right", False: "wrong", None: "–"}[verdict]


def _short(text: str | None) -> str:
    """A text in one line of a table."""
    return "–" if text is None else one_line(text, MOST_CHARACTERS)
