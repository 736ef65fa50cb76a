"""Fixtures of the sandbox's tests. Without a working jail they fail, and do not skip."""

from collections.abc import Iterator

import pytest

from retool_env.sandbox import NsjailSandbox, Sandbox, UnsafeSandbox


@pytest.fixture(scope="session")
def sandbox() -> Iterator[NsjailSandbox]:
    """Two guests in jails, shared by all tests; a test that disturbs guests makes other guests."""
    with NsjailSandbox(guests=2) as made:
        yield made


@pytest.fixture(scope="session")
def jail(sandbox: NsjailSandbox) -> NsjailSandbox:
    """The shared sandbox, under the name of its isolation."""
    return sandbox


@pytest.fixture(scope="session")
def unsafe() -> Iterator[UnsafeSandbox]:
    with pytest.warns(RuntimeWarning, match="does not isolate"):
        made = UnsafeSandbox(guests=1)
    with made:
        yield made


@pytest.fixture(params=["jail", "unsafe"])
def either(request: pytest.FixtureRequest) -> Sandbox:
    """Both sandboxes in turn: programs run alike in them."""
    return request.getfixturevalue(request.param)
