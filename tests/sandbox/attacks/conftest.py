"""One jail for all attacks; after each attack, the test checks that the jail is intact."""

from collections.abc import Iterator

import pytest
from helpers.intruders import CHECK, left_behind

from retool_env.sandbox import NsjailSandbox, Outcome


@pytest.fixture(scope="session")
def jail() -> Iterator[NsjailSandbox]:
    # One guest of each kind, so that every program is the neighbour of all others of its kind.
    with NsjailSandbox(guests=1, concurrency=16) as sandbox:
        yield sandbox


@pytest.fixture(autouse=True)
def unharmed(jail: NsjailSandbox) -> Iterator[None]:
    """Checks that the next program of each kind works in the same guest, and no process is left."""
    guests = [guest.process.pid for guest in jail.pool.guests]
    yield
    assert jail.run("print(6 * 7)").stdout == "42\n"
    execution = jail.run(CHECK)
    assert (execution.outcome, execution.stdout) == (Outcome.OK, "42 {2: 3, 3: 2, 5: 1} [] True\n")
    assert [guest.process.pid for guest in jail.pool.guests] == guests, "the guest died"
    assert left_behind(jail) == []
