"""Shared fixtures, and the rule that in CI no test of the sandbox or of a page may be skipped."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from retool_env.sandbox import Sandbox, make_sandbox

# Otherwise the collection of doctests treats all conftest.py files as modules of one name.
collect_ignore_glob = ["*conftest.py"]

# On a busy machine, the duration of an example means nothing.
settings.register_profile("retool", deadline=None)
settings.load_profile("retool")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """`some(n)`: `n` cases of a test, evenly spread, stay in `make test`; the others are slow."""
    cases: dict[tuple[Path, str], list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("some"):
            cases.setdefault((item.path, item.originalname), []).append(item)  # type: ignore[attr-defined]
    for each in cases.values():
        (count,) = each[0].get_closest_marker("some").args  # type: ignore[union-attr]
        kept = {round((i + 0.5) * len(each) / count - 0.5) for i in range(count)}
        for number, item in enumerate(each):
            if number not in kept:
                item.add_marker(pytest.mark.slow)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo):
    report = yield
    needed = "sandbox" in item.path.parts or "browser" in getattr(item, "fixturenames", ())
    if os.environ.get("CI") and report.skipped and needed:
        report.outcome = "failed"
        report.longrepr = f"skipped in CI, where it must run: {report.longrepr}"
    return report


@pytest.fixture(scope="session")
def sandbox() -> Iterator[Sandbox]:
    with make_sandbox("nsjail") as made:
        yield made


@pytest.fixture
def data() -> Path:
    """The folder of real problem sets."""
    folder = os.environ.get("RETOOL_DATA")
    if not folder:
        pytest.skip("set RETOOL_DATA to a folder of problem sets")
    return Path(folder)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Use one thread: several threads are slower for very small models."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def made_board(tmp_path_factory: pytest.TempPathFactory, sandbox: Sandbox) -> Path:
    """A folder of three runs of `retool recover` by scripted agents; it must not be changed."""
    from helpers.leaderboards import make_board

    return make_board(tmp_path_factory.mktemp("board") / "runs", sandbox)


@pytest.fixture
def board(made_board: Path, tmp_path: Path) -> Path:
    """A copy of the folder of three runs."""
    return shutil.copytree(made_board, tmp_path / "runs")
