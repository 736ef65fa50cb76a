"""Measures the viewer on a large file of episodes: its openings, one episode, and text searches.

    python -m benchmarks.view
    python -m benchmarks.view --parts opening search --episodes 2000 --megabytes 20

The file has 10,000 episodes with tokens and log-probs, in 100 MB. The parts, which `--parts`
selects:

- `opening`: seconds from the start of a process to the rows of all episodes as JSON. The first
  opening reads every line. Later openings read the cache; their figures are medians of `REPEATS`.
  Processor seconds tell how much of the time was other work on the machine.
- `episode`: milliseconds for the view and for the tokens of one episode (the median of `REPEATS`),
  and for its answer over HTTP.
- `search`: seconds of a search for a text that no episode holds, that one holds, and that all hold;
  and for a text with a character outside of ASCII, for which every line is decoded.
- `page`: seconds and bytes of the page as files.

The figures go to `benchmarks/results/view.json`.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit

from benchmarks.parts.results import RESULTS, write_results
from retool_env.evaluation.runs import open_run
from retool_env.evaluation.view.api import Api
from retool_env.evaluation.view.episode import episode_view
from retool_env.evaluation.view.index import Index
from retool_env.evaluation.view.server import ViewServer
from retool_env.evaluation.view.static import write_static
from retool_env.evaluation.view.tokens import tokens_view
from retool_env.execution import Execution, Outcome
from retool_env.problem import Problem
from retool_env.protocol.tags import render_result
from retool_env.transcript import Span, StopReason, Transcript, write_transcripts

REPEATS = 5
"""The number of measurements of a median."""

PROGRAM = """
from math import comb

total = 0
for k in range(1, {n}):
    total += comb({n}, k) * k  # each term
print(total)
"""
RARE, COMMON = "the needle of episode 7", "each term"
WORDS = ("we", "sum", "the", "terms", "of", "a", "row", "until", "its", "value", "is", "known")

OPENING = """
import sys
from retool_env import cli  # as the command does
from retool_env.evaluation.runs import open_run
from retool_env.evaluation.view.index import Index
from retool_env.evaluation.view.rows import to_json
index = Index(open_run(sys.argv[1]))
index.refresh()
index.close()
print(len(index.rows()), len(to_json(index.changes(0)[0])))
"""


def make_episode(number: int, characters: int) -> Transcript:
    """An episode with two calls, the first of which fails, and with tokens.

    Args:
        number: The number of the episode, the seed of its words.
        characters: The number of characters of its first turn.
    """
    chance = random.Random(number)
    prose = " ".join(chance.choices(WORDS, k=characters // 4))[:characters]
    prose += f" {RARE}" * (number == 7)
    program = PROGRAM.format(n=number + 2)
    failed = Execution(Outcome.RUNTIME_ERROR, "", "NameError: name 'comb' is not defined")
    ran = Execution(Outcome.OK, f"{number}\n", duration=0.01)
    right = chance.random() < 0.6
    answer = str(number if right else number + 1)
    texts: list[tuple[str, Execution | None]] = [
        (f"{prose}\n<code>{program}</code>", failed),
        (f"I import it.\n<code>{program}</code>", ran),
        (f"<answer>{answer}</answer>", None),
    ]
    spans = [Span("prompt", f"Sum row {number}.", tuple(range(8)))]
    for text, execution in texts:
        ids = tuple(chance.randrange(50_000) for _ in range(len(text) // 4))
        logprobs = tuple(-chance.random() for _ in ids)
        spans.append(Span("model", text, ids, logprobs, weight_version=number // 500))
        if execution is not None:
            shown = render_result(execution, 2000)
            spans.append(Span("env", shown, ids[:20], execution=execution, form="plain"))
    return Transcript(
        Problem(f"row-{number % 1000}", f"Sum row {number}.", str(number)),
        tuple(spans),
        stop_reason=StopReason.ANSWERED,
        answer=answer,
        correct=right,
        reward=1.0 if right else -1.0,
    )


def make_file(path: Path, episodes: int, megabytes: float) -> None:
    """Writes a file of episodes of about a given size.

    Args:
        path: The file.
        episodes: The number of episodes.
        megabytes: The size of the file, in megabytes.
    """
    wanted, characters = megabytes * 1e6 / episodes, 1000
    for _ in range(3):  # a line grows by about as many bytes for each character
        size = len(json.dumps(make_episode(0, characters).to_json()))
        characters = max(100, int(characters * wanted / size))
    write_transcripts(path, (make_episode(number, characters) for number in range(episodes)))


def seconds_of(action: Callable[[], Any]) -> float:
    """The seconds that an action takes."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def median_ms(action: Callable[[], Any]) -> float:
    """The median of the milliseconds of several runs of an action."""
    return round(1000 * statistics.median(seconds_of(action) for _ in range(REPEATS)), 2)


class Opening(NamedTuple):
    """An opening in a new process."""

    seconds: float
    """The seconds from its start to its end."""
    processor: float
    """The seconds of processor time, which other work on the machine changes less."""
    rows: int
    """The number of rows."""
    size: int
    """The number of bytes of the rows as JSON."""


def open_in_a_process(path: Path) -> Opening:
    """Opens a file in a new process, as the command does."""
    began, used = time.perf_counter(), children_time()
    command = [sys.executable, "-c", OPENING, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    rows, size = map(int, done.stdout.split())
    return Opening(time.perf_counter() - began, children_time() - used, rows, size)


def children_time() -> float:
    """The processor seconds of all ended child processes."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def opening_part(path: Path) -> dict[str, Any]:
    """Part `opening`."""
    first = open_in_a_process(path)
    later = [open_in_a_process(path) for _ in range(REPEATS)]
    figures = {
        "rows": first.rows,
        "rows_mb": round(first.size / 1e6, 2),
        "first_s": round(first.seconds, 2),
        "first_processor_s": round(first.processor, 2),
        "later_s": round(statistics.median(each.seconds for each in later), 2),
        "later_processor_s": round(statistics.median(each.processor for each in later), 2),
    }
    print(f"{first.rows} rows: first opening {figures['first_s']} s, later {figures['later_s']} s")
    return figures


def read_index(path: Path) -> Index:
    """The index of a file, read."""
    index = Index(open_run(path))
    index.refresh()
    index.close()
    return index


def episode_part(path: Path) -> dict[str, Any]:
    """Part `episode`."""
    index = read_index(path)
    address = index.rows()[-1]["address"]
    figures = {
        "view_ms": median_ms(lambda: episode_view(index, address)),
        "tokens_ms": median_ms(lambda: tokens_view(index, address)),
    }
    with ViewServer(Api([index])) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        page = urlsplit(server.address)
        below = f"api/episode?run=0&address={quote(address, safe='')}"

        def ask() -> None:
            connection = http.client.HTTPConnection(page.netloc)
            connection.request("GET", page.path + below)
            answer = connection.getresponse()
            if json.loads(answer.read()).get("address") != address:
                raise RuntimeError(f"the server answered {answer.status}")
            connection.close()

        figures["http_ms"] = median_ms(ask)
        server.shutdown()
        thread.join()
    print(", ".join(f"{name} {value}" for name, value in figures.items()))
    return figures


def search_part(path: Path) -> dict[str, Any]:
    """Part `search`."""
    index = read_index(path)
    figures: dict[str, Any] = {}
    for name, text in {"none": "not in it", "one": RARE, "all": COMMON, "not_ascii": "é"}.items():
        began = time.perf_counter()
        found = index.search(text)
        seconds = time.perf_counter() - began
        figures[name] = {"found": len(found), "seconds": round(seconds, 2)}
        print(f"search {text!r}: {len(found)} episodes, {seconds:.2f} s")
    return figures


def page_part(path: Path) -> dict[str, Any]:
    """Part `page`."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        files = write_static([open_run(path)], Path(folder) / "view.html")
        seconds = time.perf_counter() - began
        sizes = [round(file.stat().st_size / 1e6, 1) for file in files]
    print(f"page: {len(files)} files of {sizes} MB, {seconds:.1f} s")
    return {"files": len(files), "mb": sizes, "seconds": round(seconds, 1)}


PARTS = {
    "opening": opening_part,
    "episode": episode_part,
    "search": search_part,
    "page": page_part,
}


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="(all)")
    parser.add_argument("--episodes", type=int, default=10_000, help="(10000)")
    parser.add_argument("--megabytes", type=float, default=100.0, help="(100)")
    parser.add_argument("--out", type=Path, default=RESULTS / "view.json", help="(%(default)s)")
    options = parser.parse_args(arguments)
    if options.episodes < 8 or options.megabytes <= 0:
        parser.error("--episodes must be at least 8, and --megabytes above 0")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "episodes.jsonl"
        make_file(path, options.episodes, options.megabytes)
        megabytes = round(path.stat().st_size / 1e6, 1)
        print(f"{options.episodes} episodes, {megabytes} MB", flush=True)
        figures = {name: PARTS[name](path) for name in options.parts}
    settings = {"episodes": options.episodes, "megabytes": megabytes, "repeats": REPEATS}
    write_results(options.out, {"settings": settings, "parts": figures})
    return 0


if __name__ == "__main__":
    sys.exit(main())
