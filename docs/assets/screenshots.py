"""The pictures of the page of `retool view` in the documentation, made anew from real runs.

`python docs/assets/screenshots.py [FOLDER]` needs `make setup-browser` and some minutes. It runs a
benchmark of recovery with a scripted agent, trains and evaluates a tiny model, serves both, and
writes `view*.png` into the folder, by default the folder of this file.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
from contextlib import chdir
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT)]

from helpers.browser import open_browser  # noqa: E402
from helpers.page_runs import make_recover_run  # noqa: E402

from retool_env.evaluation.runs import open_run  # noqa: E402
from retool_env.evaluation.view.api import Api  # noqa: E402
from retool_env.evaluation.view.index import Index  # noqa: E402
from retool_env.evaluation.view.server import ViewServer  # noqa: E402
from retool_env.evaluation.view.static import link  # noqa: E402

TRAIN = ("-m", "agents", "sft", "--preset", "tiny", "name=tiny", "traces=300", "epochs=2")
EVALUATE = (
    *("-m", "retool_env.cli", "eval", "--model", "runs/tiny/checkpoint", "--out", "evaluated"),
    *("--problems", "8", "--k", "1"),
)
SIZE = {"width": 1280, "height": 720}


def make_runs(folder: Path) -> list[Path]:
    """Makes a benchmark of recovery and the evaluation of a tiny model."""
    for command in (TRAIN, EVALUATE):
        environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HOME": str(folder)}
        subprocess.run([sys.executable, *command], cwd=folder, env=environment, check=True)
    return [make_recover_run(folder), folder / "evaluated"]


def a_failed_fork(rows) -> dict:
    """A wrong fork whose second call timed out by an injected fault."""
    return next(row for row in rows if row["faults"] == ["timeout"] and row["right"] is False)


def take(server: ViewServer, indexes: list[Index], folder: Path) -> None:
    """Takes the pictures.

    Args:
        server: The server of both runs.
        indexes: The indexes of the benchmark and of the evaluation.
        folder: The folder for the pictures.
    """
    fork = a_failed_fork(indexes[0].rows())
    control = fork["address"].replace("/timeout/", "/control/")
    long = max(indexes[1].rows(), key=lambda row: (row["calls"], row["tokens"]))
    pictures = {
        "view": ("light", f"{link(0, fork['address'])}&q=protocol%3Afork%20right%3Ano&span=4"),
        "view-side-by-side": ("light", link(0, fork["address"], beside=(0, control))),
        "view-tokens": ("dark", f"{link(1, long['address'])}&tokens=1"),
    }
    with open_browser() as browser:
        for name, (scheme, fragment) in pictures.items():
            page = browser.new_page(viewport=SIZE, color_scheme=scheme)
            page.goto(server.address + fragment)
            page.locator(".span.model").first.wait_for()
            if name == "view":
                run_again(page)
            if name == "view-tokens":
                page.locator(".span.model .level-1, .span.model .level-2").first.hover()
            page.screenshot(path=folder / f"{name}.png")
            page.close()


def run_again(page) -> None:
    """Runs the program of the call that timed out again, and shows the control forks."""
    page.locator(".failed-call .again button").first.click()
    page.locator(".failed-call .again-result .outcome").wait_for(timeout=120_000)
    page.locator(".failed-call .forks summary").first.click()


def main() -> None:
    """Makes the runs, serves them, and takes the pictures."""
    folder = Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else HERE
    with tempfile.TemporaryDirectory() as runs, chdir(runs):
        indexes = [Index(open_run(path), cache=False) for path in make_runs(Path(runs))]
        for index in indexes:
            index.refresh()
        with ViewServer(Api(indexes)) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            take(server, indexes, folder)
            server.shutdown()


if __name__ == "__main__":
    main()
