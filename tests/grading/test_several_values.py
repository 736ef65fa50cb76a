r"""Tuples, sets, intervals and several values, as the answers of competitions have them.

Each pair of `EQUAL` is compared in both directions: either text may be the reference answer. A pair
of `ANSWERS` has the answer of a model first, and the reference answer second.
"""

import pytest

from retool_env.grading import is_equivalent, is_value

SEVERAL = [
    ("x = 2 or x = 3", "2,3"),
    ("x = 2 or 3", "2,3"),
    (r"x=2\quad\text{or}\quad x=3", "2,3"),
    (r"x = 2 \lor x = 3", "2,3"),
    ("x=2 ∨ x=3", "2,3"),
    ("$x=2$ or $x=3$", "2,3"),
    ("n = 2, n = 3, or n = 5", "2,3,5"),
    ("0, 1, and 5", "5,1,0"),
    ("2; 3", "2,3"),
    ("x_1=2, x_2=3", "2,3"),
    (r"x \in \{2,3\}", "2,3"),
    (r"\{2,3\}", "2,3"),
    (r"\frac{-1+\sqrt{17}}{2}, \frac{-1-\sqrt{17}}{2}", r"\frac{-1 \pm \sqrt{17}}{2}"),
    (r"1 \pm \sqrt2, 3", r"3, 1-\sqrt2, 1+\sqrt2"),
    (r"\pm 1, \pm 2", "-2,-1,1,2"),
    ("0, ±2", "-2,0,2"),
    ("a=3, b=4", "b=4, a=3"),
    (r"x = 2 \text{ or } y = 3", "y=3 or x=2"),
    ("AB = 9, CD = 4", "9, 4"),
    ("A=1, B=2", "a=1, b=2"),
    ("f(x)=x, f(x)=-x", r"f(x)=\pm x"),
]
CHINESE = [
    ("2、3", "2,3"),
    ("2，3", "2,3"),
    ("x=2或x=3", "2,3"),
    (r"2\text{或}3", "2,3"),
    ("2 和 3", "2,3"),
    ("{2，3}", r"\{2,3\}"),
]
SETS = [
    (r"\left\{1,\frac12,\sqrt2\right\}", r"\{\sqrt{2}, 0.5, 1\}"),
    (r"\lbrace 2,3 \rbrace", r"\{2,3\}"),
    (r"\{\pm 1, \pm 2\}", r"\{-2,-1,1,2\}"),
    (r"2 \text{ or } 3", r"\{2,3\}"),
    (r"\{(1,2),(3,4)\}", "(3,4),(1,2)"),
    (r"\{(1,2)\}", "(1,2)"),
    (r"\{2\}", "2"),
    (r"\{\}", r"\emptyset"),
    (r"\{x \mid 1<x\le2\}", "(1,2]"),
    (r"\{x\in\mathbb{R} : x \geq 2\}", r"[2,\infty)"),
]
TUPLES = [
    ("(0.5, -3)", r"\left(\frac{1}{2},-3\right)"),
    ("(x, y) = (1, 2)", "(1,2)"),
    ("x=1, y=2", "(1,2)"),
    ("y=2, x=1", "(1,2)"),
    ("z=3; y=2; x=1", "(1,2,3)"),
    (r"b=4 \text{ and } a=3", "(3,4)"),
    ("x_2=1, x_1=2", "(2,1)"),
    ("(b,a)=(4,3)", "a=3, b=4"),
    ("(x,y)=(1,2)", "(y,x)=(2,1)"),
    (r"r=2, \theta=\pi", r"(2,\pi)"),
    ("x=2, y=3 or y=2, x=3", "(2,3),(3,2)"),
    (r"x=2, y=3 \text{ or } x=3, y=2", r"\{(2,3),(3,2)\}"),
    (r"\langle 1, 2 \rangle", "(1,2)"),
    (r"\left\langle 1, 2, 3 \right\rangle", "(1,2,3)"),
    (r"(1,2) \text{ and } (3,4)", "(3,4),(1,2)"),
    ("(2,3), (3,2), and (5,7)", "(2,3),(3,2),(5,7)"),
    ("(x,y)=(1,2) or (x,y)=(3,4)", "(1,2),(3,4)"),
    (r"(p,q)=(2,3) \text{ and } (3,2)", "(2,3),(3,2)"),
    (r"(p,q) \in \{(2,3),(3,2)\}", "(2,3),(3,2)"),
    (r"(\pm 1, 2)", "(1,2),(-1,2)"),
]
INTERVALS = [
    ("1 <= x < 2", "[1,2)"),
    ("2 > x >= 1", "[1,2)"),
    (r"x \in [1,2)", "[1,2)"),
    ("x > 3", r"(3,\infty)"),
    (r"a\in\left[\frac{1}{2},+\infty\right)", r"[\frac12,\infty)"),
    (r"(-\infty,1)\cup(2,\infty)", r"(2,\infty)\cup(-\infty,1)"),
    (r"x < 1 \text{ or } x > 2", r"(-\infty,1)\cup(2,\infty)"),
    ("x<1或x>2", r"(-\infty,1)\cup(2,+\infty)"),
    (r"-1 < a \le 0 \text{ or } a > 3", r"(-1,0]\cup(3,\infty)"),
    ("1 < x < 2 or 3 < x < 4", r"(1,2)\cup(3,4)"),
    (r"\mathbb{R}\setminus\{0\}", r"(-\infty,0)\cup(0,\infty)"),
    (r"[1,2]\cup\{3\}", r"\{3\}\cup[1,2]"),
    ("2 < x", "x > 2"),
]
FORMULAS = [
    (r"2^{n+1}-n", r"2 \cdot 2^n - n"),
    ("f(n)=2^n", "2^n"),
    (r"\frac{n(n+1)}{2}", r"\binom{n+1}{2}"),
    (r"2^{25} \cdot 26!", "26! * 2^25"),
    (r"\frac{100!}{50!50!}", r"\binom{100}{50}"),
    (r"C_{100}^{50}", r"\binom{100}{50}"),
    (r"C^{50}_{100}", r"\binom{100}{50}"),
    ("C(100, 50)", r"\binom{100}{50}"),
    (r"{}_{5}C_{2}", "10"),
    (r"{}^{5}\mathrm{C}_{2}", "10"),
    (r"2C_5^2 + 1", "21"),
    (r"C_{2n}^{n}", r"\binom{2n}{n}"),
    (r"\sqrt{ab}", r"\sqrt{a}\sqrt{b}"),
    (r"\sqrt{\frac{a}{b}}", r"\frac{\sqrt{a}}{\sqrt{b}}"),
    (r"2^{2024}-1", r"-1+4^{1012}"),
    (r"\log_2 3", r"\frac{\ln 3}{\ln 2}"),
    (r"2\sqrt{5+2\sqrt{5}}", r"\sqrt{20+8\sqrt5}"),
    ("6,266,942,768", "6266942768"),
]
EQUAL = SEVERAL + CHINESE + SETS + TUPLES + INTERVALS + FORMULAS

ANSWERS = [
    ("[2, 3]", r"\{2,3\}"),
    ("{1, 1/2, sqrt(2)}", r"\{\sqrt{2}, \frac{1}{2}, 1\}"),
    ("FiniteSet(1, 2)", r"\{1,2\}"),
    ("frozenset({1, 2})", r"\{1,2\}"),
    ("set([1, 2])", r"\{1,2\}"),
    ("[(1, 2), (3, 4)]", "(1,2),(3,4)"),
    ("{(1, 2), (3, 4)}", r"\{(1,2),(3,4)\}"),
    ("[Fraction(1, 3), Fraction(2, 3)]", r"\frac{1}{3}, \frac{2}{3}"),
    ("n \\in {2,3,5}", "2,3,5"),
    ("y=3, x=2", "2,3"),
    (r"x=2 \text{ and } y=3", "2,3"),
    ("3, 4", "a=3, b=4"),
    (r"3 \text{ and } 4", "a=3, b=4"),
    ("[3, 4]", "a=3, b=4"),
    (r"\boxed{y=3} \text{ and } \boxed{x=2}", "(2,3)"),
    ("Interval.Ropen(1, 2)", "[1,2)"),
    ("Union(Interval.open(-oo, 1), Interval.open(2, oo))", r"(-\infty,1)\cup(2,\infty)"),
]

NEAR_MISSES = [
    ("x = 2 or x = 4", "2,3"),
    ("2或4", "2,3"),
    ("2或3", "2"),
    ("2、3", "3"),
    ("2和3", "5"),
    ("和为5", "5"),
    ("5或六", "5"),
    ("2", "2,3"),
    ("2,3,4", "2,3"),
    (r"\{2\}", r"\{2,3\}"),
    (r"2 \lor 3", "3"),
    (r"1\pm\sqrt2, 3", r"1+\sqrt2, 3"),
    (r"\frac{1 \pm \sqrt{17}}{2}", r"\frac{-1 \pm \sqrt{17}}{2}"),
    ("a=4, b=3", "a=3, b=4"),
    ("(2,1)", "(1,2)"),
    ("(1,2,3)", "(1,2)"),
    ("(1,2)", "(1,2),(3,4)"),
    ("(1,2),(4,3)", "(1,2),(3,4)"),
    ("(3,1),(2,4)", "(1,2),(3,4)"),
    ("1,2,3,4", "(1,2),(3,4)"),
    (r"\{(2,1),(4,3)\}", r"\{(1,2),(3,4)\}"),
    (r"\{(1,2),(3,4)\}", "(1,2)"),
    ("x=2, y=1", "(1,2)"),
    ("y=1, x=2", "(1,2)"),
    ("z=1, y=2, x=3", "(1,2,3)"),
    ("x_2=1, x_1=2", "(1,2)"),
    ("(4,3)", "a=3, b=4"),
    ("(3,4)", "a=4, b=3"),
    ("(b,a)=(3,4)", "a=3, b=4"),
    (r"3 \text{ or } 4", "a=3, b=4"),
    (r"x=2, y=3", r"\{2,3\}"),
    ("a=3, b=4, c=5", "(3,4)"),
    ("y=2, x=3 or x=3, y=2", "(2,3),(3,2)"),
    ("x = 2 or y = 3", "2,3"),
    ("x=2或y=3", "2,3"),
    (r"x = 2 \lor y = 3", r"\{2,3\}"),
    ("x = 2 or y = 3", "(2,3)"),
    ("x = 2 or y = 3", "x = 2, y = 3"),
    ("x = 2 or 3, y = 4", "2,3,4"),
    ("(2,1)", r"\{1,2\}"),
    ("(1,2)", r"\{1,2\}"),
    ("(2,1)", r"A=\{1,2\}"),
    ("((1,2),(3,4))", r"\{(1,2),(3,4)\}"),
    (r"\langle 2, 1 \rangle", "(1,2)"),
    (r"\langle 1, 2 \rangle", r"\{1,2\}"),
    (r"\langle 1, 2 \rangle", "[1,2]"),
    (r"C_{100}^{49}", r"\binom{100}{50}"),
    ("C(2, 5)", "10"),
    ("C_n^k", r"\binom{k}{n}"),
    (r"\sqrt{ab}", r"\sqrt{a}+\sqrt{b}"),
    (r"\sqrt{ab}", r"-\sqrt{a}\sqrt{b}"),
    (r"\sqrt{a^2}", "a"),
    (r"\sqrt{a^2 b}", r"a\sqrt{b}"),
    (r"\sqrt{a^2+b^2}", "a+b"),
    ("(x,y)=(1,2) or (y,x)=(3,4)", "(1,2),(3,4)"),
    (r"(\pm 1, 2)", "(1,2)"),
    (r"(\pm 1, \pm 2)", "(1,2),(-1,-2)"),
    ("[1,2]", "[1,2)"),
    ("1 < x < 2", "[1,2)"),
    ("1 < x > 2", "(1,2)"),
    ("1 > x > 2", "(1,2)"),
    ("x >= 3", r"(3,\infty)"),
    ("x < 3", r"(3,\infty)"),
    ("x < 1", r"(-\infty,1)\cup(2,\infty)"),
    ("x < 1 or x >= 2", r"(-\infty,1)\cup(2,\infty)"),
    ("x < 1 and x > 2", r"(-\infty,1)\cup(2,\infty)"),
    ("x < 1 or y > 2", r"(-\infty,1)\cup(2,\infty)"),
    ("1 < x < 2 or x = 5", "(1,2)"),
    (r"\{x \mid 1<x<2\}", "(1,2]"),
    (r"[1,2]", r"[1,2]\cup\{3\}"),
    ("2^n - 1", "2^n"),
    ("2^{24} 26!", r"2^{25} \cdot 26!"),
    ("2^{2025}", "2^{2024}"),
    ("f(x)=x", "f(x)=-x"),
]
"""Pairs that are not equal in either direction."""


@pytest.mark.parametrize(("first", "second"), EQUAL)
def test_equal_in_both_directions(first: str, second: str) -> None:
    assert is_equivalent(first, second), "the second is the reference answer"
    assert is_equivalent(rf"so \boxed{{{second}}}", first), "the first is the reference answer"


@pytest.mark.parametrize(("answer", "gold"), ANSWERS)
def test_programs_print_answers_in_this_way(answer: str, gold: str) -> None:
    assert is_equivalent(answer, gold)


@pytest.mark.parametrize(("first", "second"), NEAR_MISSES)
def test_near_misses_are_wrong(first: str, second: str) -> None:
    assert not is_equivalent(first, second)
    assert not is_equivalent(second, first)


@pytest.mark.parametrize("gold", sorted({second for _, second in EQUAL + ANSWERS}))
def test_the_reference_answers_can_be_graded(gold: str) -> None:
    assert is_value(gold)
