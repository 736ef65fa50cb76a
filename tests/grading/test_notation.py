"""The output of models and interpreters becomes LaTeX, and is never evaluated."""

import ast

import pytest
import sympy
from hypothesis import given, settings
from hypothesis import strategies as st

from retool_env.grading import is_equivalent
from retool_env.grading.notation import ascii_latex, from_python, latex, plain_number

PYTHON = {
    "pi/4": r"\frac{\pi}{4}",
    "exp(2)": "e^{2}",
    "2*I": r"2 \cdot i",
    "1 + sqrt(2)": r"1 + \sqrt{2}",
    "Fraction(1, 2)": r"\frac{1}{2}",
    "-sqrt(3)/2 - I/2": r"\frac{-\sqrt{3}}{2} - \frac{i}{2}",
    "(x + 1)*y": r"(x + 1) \cdot y",
    "1 - (2 - pi)": r"1 - (2 - \pi)",
    "2^10*pi": r"2^{10} \cdot \pi",
    "(-2)**3": "(-2)^{3}",
    "log(8, 2)": r"\log_{2}(8)",
    "{1/2, sqrt(2)}": r"\{\frac{1}{2}, \sqrt{2}\}",
    "Decimal('0.5')": "0.5",
    "Fraction('1/2')": r"\frac{1}{2}",
    "np.float64(3.5)": "(3.5)",
    "sympy.sqrt(2)": r"\sqrt{2}",
    "1e3*pi": r"1000 \cdot \pi",
    "A*I + E": r"A \cdot I + E",  # next to other capital letters, I and E are variables
}


@pytest.mark.parametrize(("text", "expected"), PYTHON.items(), ids=PYTHON)
def test_printed_python_becomes_latex(text: str, expected: str) -> None:
    assert from_python(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "x+1",
        "(1, 2)",
        "E",
        "I",
        "5",
        "two",
        "",
        r"\pi*2",
        "True*2",
        "f(x)*2",
        "__import__('os')*2",
        "pi.__class__",
        "().__class__*1",
        "[x for x in pi]",
        "lambda: pi",
        "pi if 1 else 2",
        "0x10*pi",
        "sqrt()",
        "sqrt(1, 2)",
        "sqrt(x=1)",
        "exec('1')*2",
        "(" * 300 + "pi" + ")" * 300,
        "-" * 1990 + "pi",
        "pi*\0",
    ],
)
def test_other_texts_are_not_rewritten(text: str) -> None:
    assert from_python(text) is None


@st.composite
def printed(draw: st.DrawFn) -> sympy.Expr:
    atoms = st.sampled_from(
        [sympy.pi, sympy.E, sympy.sqrt(2), sympy.Integer(3), sympy.Rational(2, 5), sympy.exp(-1)]
    )
    expression = draw(atoms)
    for operator in draw(st.lists(st.sampled_from("+-*/^"), min_size=1, max_size=3)):
        other = draw(atoms)
        expression = {
            "+": expression + other,
            "-": expression - other,
            "*": expression * other,
            "/": expression / other,
            "^": expression ** draw(st.integers(-2, 3)),
        }[operator]
    return expression


@settings(max_examples=40)
@given(printed())
def test_printed_sympy_equals_its_latex(expression: sympy.Expr) -> None:
    assert is_equivalent(str(expression), sympy.latex(expression))


LATEX = {
    "x²": "x^{2}",
    "x₁₂": "x_{12}",
    "10⁻³": "10^{-3}",
    "∞": r"\infty",
    "2·3": r"2\cdot 3",
    "√2/2": r"\sqrt{2}/2",
    "∛(x+1)": r"\sqrt[3]{x+1}",
    "½": r"\frac{1}{2}",
    "π/4": r"\pi /4",
    "α": r"\alpha",
    "Ω": r"\Omega",
    "３３": "33",
    "𝟑𝐱": "3x",
    "33°": r"33^\circ",
    "a\u200bb": "ab",
    "٣": "٣",
    r"1-\frac{1}{\mathrm{e}}": r"1-\frac{1}{ e }",
    r"5 \rm{ cm}": r"5 \text{ cm}",
    r"5 {\rm cm}": r"5 \text{cm}",
    r"5\text {cm}": r"5\text{cm}",
    r"\boldsymbol{33}": "33",
    r"\text{033}": "033",
    r"3\text{2}": r"3\text{2}",  # not 32
    r"2\boldsymbol{(x+1)}": "2((x+1))",
    "3e2": "300",
    "1e-05": "0.00001",
    "-2.5e3": "-2500",
    "1e500": r"1 \cdot 10^{500}",
    "2e": "2e",
    "e^2": "e^2",
    "3ex": "3ex",
    "x3e2": "x3e2",
    "2pi": r"2\pi",
}


@pytest.mark.parametrize(("text", "expected"), LATEX.items(), ids=map(ascii, LATEX))
def test_other_notation_becomes_latex(text: str, expected: str) -> None:
    assert latex(text) == expected


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("1e-05", "0.00001"),
        ("1e20", "100000000000000000000"),
        ("34.0", "34.0"),
        ("1e401", None),
        ("nan", None),
        ("inf", None),
        ("x", None),
    ],
)
def test_numbers_are_written_out(text: str, plain: str | None) -> None:
    assert plain_number(text) == plain


@given(st.text(max_size=40))
def test_any_text_has_a_notation_and_ascii_stays(text: str) -> None:
    assert isinstance(latex(text), str)
    if text.isascii():
        assert ascii_latex(text) == text


@given(st.integers(-(10**6), 10**6), st.integers(-20, 20))
def test_scientific_notation_keeps_its_value(mantissa: int, exponent: int) -> None:
    written = latex(f"{mantissa}e{exponent}")
    assert sympy.Rational(written) == mantissa * sympy.Integer(10) ** exponent
    assert ast.literal_eval(f"{mantissa}e{exponent}") == float(written)
