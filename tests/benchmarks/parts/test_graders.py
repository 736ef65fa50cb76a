"""math-verify in its process: a comparison that hangs or crashes does not stop the next one."""

from contextlib import closing

import pytest

from benchmarks.parts import graders
from benchmarks.parts.graders import MathVerify


@pytest.fixture(scope="module")
def peer():
    with closing(MathVerify(patience=2.0)) as peer:
        yield peer


def test_math_verify_hangs_without_holding_up_the_next_comparison(peer):
    assert peer.grade("0.5", r"\frac{1}{2}")[0] is True
    assert peer.grade("9^{9^{9^9}}", "42")[0] is None
    assert peer.grade("4", "42")[0] is False


def test_math_verify_crashes_without_holding_up_the_next_comparison(peer):
    peer.process.kill()
    peer.process.join()
    assert peer.grade("1", "1")[0] is None
    assert peer.grade("1", "1")[0] is True


def test_math_verify_gets_the_delimiters_that_it_asks_for(peer):
    assert graders.delimited(r"\frac{1}{2}") == r"$\frac{1}{2}$"
    for text in (r"\(x\)", r"\[x\]", "cost: $5", r"\boxed{x}"):
        assert graders.delimited(text) == text
    assert peer.grade("x^2+2x+1", "(x+1)^2")[0] is True
