"""Fixtures of the sandbox's tests. Where no jail works they fail: a sandbox untested is none."""

from collections.abc import Iterator

import pytest

from retool_env.sandbox import NsjailSandbox, Sandbox, UnsafeSandbox


@pytest.fixture(scope="session")
def sandbox() -> Iterator[NsjailSandbox]:
    """Two guests in jails, shared by all; a test that disturbs guests makes its own."""
    with NsjailSandbox(guests=2) as made:
        yield made


@pytest.fixture(scope="session")
def jail(sandbox: NsjailSandbox) -> NsjailSandbox:
    """The same, by the name of what it is."""
    return sandbox


@pytest.fixture(scope="session")
def unsafe() -> Iterator[UnsafeSandbox]:
    with pytest.warns(RuntimeWarning, match="does not isolate"):
        made = UnsafeSandbox(guests=1)
    with made:
        yield made


@pytest.fixture(params=["jail", "unsafe"])
def either(request: pytest.FixtureRequest) -> Sandbox:
    """Both sandboxes in turn: they run programs alike."""
    return request.getfixturevalue(request.param)
