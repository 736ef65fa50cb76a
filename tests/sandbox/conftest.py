"""Fixtures of the sandbox's tests. Where no jail works they fail: a sandbox untested is none."""

from collections.abc import Iterator

import pytest

from retool_env.sandbox import NsjailSandbox, Sandbox, UnsafeSandbox


@pytest.fixture(scope="session")
def jail() -> Iterator[NsjailSandbox]:
    with NsjailSandbox() as sandbox:
        yield sandbox


@pytest.fixture(scope="session")
def unsafe() -> Iterator[UnsafeSandbox]:
    with pytest.warns(RuntimeWarning, match="does not isolate"):
        sandbox = UnsafeSandbox()
    with sandbox:
        yield sandbox


@pytest.fixture(params=["jail", "unsafe"])
def sandbox(request: pytest.FixtureRequest) -> Sandbox:
    """Both sandboxes in turn: they run programs alike."""
    return request.getfixturevalue(request.param)
