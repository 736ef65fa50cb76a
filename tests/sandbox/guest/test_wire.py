"""Packed bounds unpack to the same values."""

from hypothesis import given
from hypothesis import strategies as st

from retool_env.sandbox.guest.wire import Bounds

numbers = st.integers(0, 2**62)


@given(st.builds(Bounds, memory=numbers, cpu=numbers, processes=numbers, tmp=numbers))
def test_bounds_arrive_as_sent(bounds: Bounds) -> None:
    assert Bounds.unpack(bounds.pack()) == bounds
