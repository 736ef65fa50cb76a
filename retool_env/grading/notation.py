r"""The notations of models and interpreters, rewritten in one notation: LaTeX.

An answer may be written in Unicode (`x²`, `∞`), as Python prints it (`2*sqrt(3)`,
`Fraction(1, 2)`), in scientific notation (`3e2`), or in a font (`\mathbf{3}`). This module rewrites
all of these as the LaTeX that the parser reads. It evaluates no text: it parses Python's notation
into a syntax tree and accepts only the names and operators listed here.
"""

import ast
import re
import unicodedata
from decimal import Decimal

MAX_EXPONENT = 400
"""The largest power of ten, positive or negative, that is written out as plain digits."""

# --- characters -----------------------------------------------------------------------------------

_NAMED = {
    character: name
    for characters, names in (
        ("× ⋅ · ∙ • ∗ ÷ ± ∓ ∘ ∞", "times cdot cdot cdot cdot cdot div pm mp circ infty"),
        ("≤ ⩽ ≥ ⩾ ≠ ≈ ≡ →", "le le ge ge ne approx equiv to"),
        ("∈ ∉ ∅ ⊂ ⊆ ∪ ∩ ∖", "in notin emptyset subset subseteq cup cap setminus"),
        ("⟨ ⟩ ⌊ ⌋ ⌈ ⌉", "langle rangle lfloor rfloor lceil rceil"),
        ("∫ ∑ ∏ … ⋯", "int sum prod ldots cdots"),
    )
    for character, name in zip(characters.split(), names.split(), strict=True)
}
_PLAIN = {
    "−": "-",
    "⁄": "/",
    "∕": "/",
    "∶": ":",
    "°": r"^\circ ",
    "º": r"^\circ ",
    "˚": r"^\circ ",
    "′": "'",
    **dict.fromkeys("\N{ZERO WIDTH SPACE}\N{ZERO WIDTH NON-JOINER}\N{ZERO WIDTH JOINER}", ""),
    **dict.fromkeys("\N{WORD JOINER}\N{ZERO WIDTH NO-BREAK SPACE}\N{SOFT HYPHEN}", ""),
    **dict.fromkeys("\N{LEFT-TO-RIGHT MARK}\N{RIGHT-TO-LEFT MARK}", ""),
    **{letter: rf"\mathbb{{{unicodedata.normalize('NFKC', letter)}}}" for letter in "ℝℤℕℚℂ"},
}
_CHINESE = {"、": ",", "或": r"\text{ or }", "和": r"\text{ and }"}
_CHINESE_WORD = re.compile(r"\\text\s*\{\s*([或和])\s*\}|([、或和])")
_RAISED = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿⁱˣ", "0123456789+-()nix", strict=True))
_LOWERED = dict(zip("₀₁₂₃₄₅₆₇₈₉₊₋₍₎ₙₓᵢ", "0123456789+-()nxi", strict=True))


def _characters() -> dict[int, str]:
    table = {ord(old): rf"\{new} " for old, new in _NAMED.items()}
    table |= {ord(old): new for old, new in _PLAIN.items()}
    for code in range(0x391, 0x3CA):
        case, _, name = unicodedata.name(chr(code), "").removeprefix("GREEK ").partition(" LETTER ")
        name = name.lower().replace("lamda", "lambda")
        if name.isalpha() and "final" not in name:
            table[code] = rf"\{name if case == 'SMALL' else name.capitalize()} "
    # Full-width forms and mathematical fonts, but not the digits of other scripts.
    for code in (*range(0xFF01, 0xFF5F), *range(0x1D400, 0x1D800)):
        plain = unicodedata.normalize("NFKC", chr(code))
        table[code] = plain if plain.isascii() else table.get(ord(plain[0]), chr(code))
    for code in (0xA0, *range(0x2000, 0x200B), 0x202F, 0x205F, 0x3000):
        table[code] = " "
    for code in (*range(0xBC, 0xBF), *range(0x2150, 0x215F)):  # ½ and its like
        above, _, below = unicodedata.normalize("NFKC", chr(code)).partition("\N{FRACTION SLASH}")
        table[code] = rf"\frac{{{above}}}{{{below}}}"
    return table


_CHARACTERS = _characters()
_RUNS = re.compile(f"[{''.join(_RAISED)}]+|[{''.join(_LOWERED)}]+")
_ROOT = re.compile(r"([√∛∜])\s*(?:\(([^()]*)\)|\{([^{}]*)\}|([0-9.]+|[A-Za-z]))")
_DEGREES = {"√": "", "∛": "[3]", "∜": "[4]"}


def _run(match: re.Match[str]) -> str:
    table, sign = (_RAISED, "^") if match[0][0] in _RAISED else (_LOWERED, "_")
    return f"{sign}{{{''.join(table[character] for character in match[0])}}}"


def _root(match: re.Match[str]) -> str:
    content = match[2] or match[3] or match[4] or ""
    return rf"\sqrt{_DEGREES[match[1]]}{{{content}}}"


def ascii_latex(text: str) -> str:
    """Rewrites mathematical Unicode characters as LaTeX; characters without LaTeX form stay."""
    if text.isascii():
        return text
    text = _CHINESE_WORD.sub(lambda match: _CHINESE[match[1] or match[2]], text)
    text = _ROOT.sub(_root, _RUNS.sub(_run, text))
    return text.translate(_CHARACTERS)


# --- numbers --------------------------------------------------------------------------------------

_SCIENTIFIC = re.compile(r"(?<![\w.\\])(\d+\.?\d*|\.\d+)[eE]([+-]?\d+)(?![\w.])")


def plain_number(text: str) -> str | None:
    """Rewrites a number in scientific notation without exponent: `1e-05` becomes `0.00001`.

    Returns:
        All digits of the number; `None` if the exponent exceeds `MAX_EXPONENT`, or the text is not
        a number.
    """
    try:
        number = Decimal(text)
    except ArithmeticError:
        return None
    if not number.is_finite() or abs(number.adjusted()) > MAX_EXPONENT:
        return None
    return f"{number:f}"


def _written_out(match: re.Match[str]) -> str:
    if (plain := plain_number(match[0])) is not None:
        return plain
    return rf"{match[1]} \cdot 10^{{{match[2]}}}"


# --- fonts ----------------------------------------------------------------------------------------

_FONT = (
    r"\\(?:math(?:rm|bf|it|sf|tt|normal)|boldsymbol|bm|bold|pmb"
    r"|text(?:bf|it|rm|sf|tt|normal|up)?|mbox|operatorname\*?)"
)
_SWITCH = re.compile(
    r"\{\s*\\(?:rm|bf|it|tt|sf|cal)\b\s*([^{}]*)\}|\\(?:rm|bf|it|tt|sf)\b\s*\{([^{}]*)\}"
)
_OPEN_SWITCH = re.compile(r"\\(?:rm|bf|it|tt|sf)\s+([A-Za-z][^\\{}$]*)$")
_SPACED = re.compile(rf"({_FONT})\s+\{{")
_NUMBER_IN_FONT = re.compile(rf"(?<![\w}}])\s*{_FONT}\{{\s*([+-]?[\d.,]*\d)\s*\}}(?!\w)")
_CONSTANT = re.compile(rf"{_FONT}\{{\s*([ei])\s*\}}")
_SYMBOL_FONT = re.compile(r"\\(?:boldsymbol|bm|bold|pmb)\s*\{([^{}]*(?:\{[^{}]*\}[^{}]*)*)\}")
_ANGLE = re.compile(
    r"(\\(?:sin|cos|tan|cot|sec|csc))\s*(?:\\left)?[({]?\s*(\d+(?:\.\d+)?)"
    r"\s*\^\s*(?:\{\s*\\circ\s*\}|\\circ)\s*(?:\\right)?[)}]?"
)
_BARE_SYMBOL = r"(\\(?:pi|theta|alpha|beta|phi|omega))(?![A-Za-z])"
_ABOVE = re.compile(rf"(\\[dtc]?frac)\s*{_BARE_SYMBOL}")
_BELOW = re.compile(rf"(\\[dtc]?frac\s*(?:\{{[^{{}}]*\}}|\d))\s*{_BARE_SYMBOL}")
_PI = re.compile(r"(?<![A-Za-z\\])pi(?![A-Za-z])")
_INFINITY = re.compile(r"(?<![A-Za-z\\])oo(?![A-Za-z])")


def _without_font(match: re.Match[str]) -> str:
    grouped = re.search("[-+,;=]", match[1]) and match[0] != match.string.strip()
    return f"({match[1]})" if grouped else f" {match[1]} "


_COLOUR = re.compile(
    r"\\(?:textcolor|colorbox)\{[^{}]*\}\s*(?=\{)|\\color\{[^{}]*\}|\\underline\s*(?=\{)"
)
_SIZE = re.compile(r"\\[bB]igg?[lr]?(?![A-Za-z])")
_DASH = re.compile(r"(^|[(=,\[]\s*)\N{EN DASH}(?=[\d\\a-z])")
_GROUPED = re.compile(r"(?<=\d)(?:\{,\}|,\\!|\\!,?|,\\,)\s*(?=\d{3}(?!\d))")
_AFTER_NAME = re.compile(r"(?<==)(\s*\\?\$?\s*-?)(\d{1,3}(?:,\d{3})+)(?=\s*(?:\\text|$))")
_MIXED = re.compile(r"([+-]?)\s*(\d+)(?:\s|~|\\ )+(\d+)/(\d+)")
_REPEATING = re.compile(r"(?<![\d.])(\d*)\.(\d*)\\(?:overline|bar)\s*\{?\s*(\d+)\s*\}?")
_NOUN = re.compile(r"(?<=[\d})])\s+([a-z]{3,}(?: [a-z]{2,}){0,2})$")
_COMPOUND = re.compile(
    r"(?<=[\d}])[\s~]+((?:km|cm|mm|m|mi|ft|in|kg|g|mg|L|mL|lbs?|oz)"
    r"/(?:km|m|s|h|hr|min|kg|g|L|day|hour)(?:\^\{?[23]\}?)?)$"
)
_UNION = re.compile(r"(?<=[)\]])\s*(?:U|\\text\{\s*or\s*\}|or)\s*(?=[(\[])")
_DISJUNCTION = re.compile(r"\s*(?:\\(?:lor|vee)(?![A-Za-z])|∨)\s*")
_NOT_NOUNS = {
    *("percent", "percentage", "pct", "sqrt", "mod", "choose", "cup", "cap", "div", "times"),
    *("over", "frac", "sin", "cos", "tan", "log"),
}


def _repeated(match: re.Match[str]) -> str:
    r"""The fraction of a repeating decimal, for example of `0.1\overline{6}`."""
    whole, fixed, period = match[1] or "0", match[2], match[3]
    if len(match[0]) > 50:
        return match[0]
    nines = (10 ** len(period) - 1) * 10 ** len(fixed)
    return rf"\frac{{{int(whole + fixed + period) - int(whole + fixed)}}}{{{nines}}}"


def _noun(match: re.Match[str]) -> str:
    known = _NOT_NOUNS.isdisjoint(match[1].split())
    return rf"\text{{ {match[1]}}}" if known else match[0]


def latex(text: str) -> str:
    """Rewrites an expression as LaTeX, from any notation that the module's docstring names."""
    text = ascii_latex(_DASH.sub(r"\1-", text))
    if mixed := _MIXED.fullmatch(text.strip()):
        return rf"{mixed[1]}{mixed[2]}\frac{{{mixed[3]}}}{{{mixed[4]}}}"
    text = from_python(text) or text
    text = _SIZE.sub("", _COLOUR.sub("", text)).replace("~", " ")
    text = text.replace(r"\degree", r"^\circ").replace(r"\varnothing", r"\emptyset")
    text = text.replace(r"\lbrace", r"\{").replace(r"\rbrace", r"\}")
    text = _DISJUNCTION.sub(r"\\text{ or }", text)
    text = _GROUPED.sub("", text)
    text = _AFTER_NAME.sub(lambda match: match[1] + match[2].replace(",", ""), text)
    text = _REPEATING.sub(_repeated, text)
    if "infty" in text or "oo" in text:  # else the parentheses may be points
        text = _UNION.sub(r" \\cup ", text)
    text = _COMPOUND.sub(r"\\text{ \1}", _NOUN.sub(_noun, text))
    text = _SPACED.sub(r"\1{", text)
    text = _SWITCH.sub(lambda match: rf"\text{{{match[1] or match[2] or ''}}}", text)
    text = _OPEN_SWITCH.sub(r"\\text{\1}", text)
    text = _SYMBOL_FONT.sub(_without_font, text)
    text = _NUMBER_IN_FONT.sub(r" \1", text)
    text = _CONSTANT.sub(r" \1 ", text)
    text = _SCIENTIFIC.sub(_written_out, text)
    text = _BELOW.sub(r"\1{\2}", _ABOVE.sub(r"\1{\2}", text))
    text = _ANGLE.sub(r"\1(\\frac{\2 \\pi}{180})", text)
    return _INFINITY.sub(r"\\infty ", _PI.sub(r"\\pi ", text)).strip()


# --- Python ---------------------------------------------------------------------------------------

_CONSTANTS = {"pi": r"\pi", "E": "e", "I": "i", "oo": r"\infty", "inf": r"\infty"}
_MODULES = {
    *("sympy", "sp", "sy", "math", "cmath", "numpy", "np", "mpmath", "mp"),
    *("fractions", "decimal"),
}
_GREEK = {"alpha", "beta", "gamma", "delta", "epsilon", "theta", "lambda", "mu", "phi", "omega"}
_TYPES = {
    *("Integer", "Float", "Decimal", "Fraction", "Rational", "mpf", "float64", "float32"),
    *("int64", "int32", "float", "int", "S", "sympify"),
}
_TRIGONOMETRIC = {"sin", "cos", "tan", "cot", "sec", "csc", "sinh", "cosh", "tanh"}
_ONE = {
    "sqrt": r"\sqrt{{{0}}}",
    "cbrt": r"\sqrt[3]{{{0}}}",
    "exp": "e^{{{0}}}",
    "log": r"\ln({0})",
    "ln": r"\ln({0})",
    "log10": r"\log_{{10}}({0})",
    "log2": r"\log_{{2}}({0})",
    "Abs": r"\left|{0}\right|",
    "abs": r"\left|{0}\right|",
    "factorial": "({0})!",
    "floor": r"\lfloor {0} \rfloor",
    "ceil": r"\lceil {0} \rceil",
    "ceiling": r"\lceil {0} \rceil",
    **{name: rf"\{name}({{0}})" for name in _TRIGONOMETRIC},
    **{f"a{name}": rf"\arc{name}({{0}})" for name in ("sin", "cos", "tan", "cot", "sec", "csc")},
    **{f"arc{name}": rf"\arc{name}({{0}})" for name in ("sin", "cos", "tan")},
}
_TWO = {
    "Fraction": r"\frac{{{0}}}{{{1}}}",
    "Rational": r"\frac{{{0}}}{{{1}}}",
    "log": r"\log_{{{1}}}({0})",
    "root": r"\sqrt[{1}]{{{0}}}",
    "Pow": "({0})^{{{1}}}",
    "binomial": r"\binom{{{0}}}{{{1}}}",
    "comb": r"\binom{{{0}}}{{{1}}}",
    "Eq": "{0} = {1}",
    "Interval": "[{0}, {1}]",
    "open": "({0}, {1})",
    "Lopen": "({0}, {1}]",
    "Ropen": "[{0}, {1})",
}
_MANY = {"FiniteSet": r"\{{{}\}}", "Tuple": "({})"}
_SETS = {"set", "frozenset"}
_OPERATORS = {ast.Add: (1, "+"), ast.Sub: (1, "-"), ast.Mult: (2, r"\cdot")}
_CONTAINERS = {"Matrix", "array", "Union", *_SETS}
_KNOWN = {*_ONE, *_TWO, *_MANY, *_TYPES, *_CONSTANTS, *_CONTAINERS} - _TRIGONOMETRIC
_MARK = re.compile(
    rf"\*|\d[jJ]\b|\[\[|\b(?:{'|'.join(sorted(_KNOWN))})\b|\b(?:{'|'.join(_TRIGONOMETRIC)})\("
)


class _Unknown(Exception):
    """The text is not an expression that `from_python` accepts."""


def from_python(text: str) -> str | None:
    r"""Rewrites an expression that Python, sympy or numpy printed as LaTeX.

    `^` means a power. A text without a mark of Python, such as `x+1` or `(1, 2)`, is not rewritten:
    the parser reads it as LaTeX.

    Returns:
        The LaTeX; `None` if the text is not such an expression.

    Example:
        >>> from_python("1 + 2*sqrt(3)"), from_python("Fraction(1, 2)"), from_python("two")
        ('1 + 2 \\cdot \\sqrt{3}', '\\frac{1}{2}', None)
    """
    if len(text) < 2 or "\\" in text or "$" in text or not _MARK.search(text):
        return None
    source = text.strip().replace("^", "**")
    try:
        tree = ast.parse(source, mode="eval").body
        names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        # Next to other capital letters, E and I are variables and not constants.
        variables = any(len(name) == 1 and name.isupper() and name not in "EI" for name in names)
        return _Reader(source, variables).read(tree)[0]
    except (_Unknown, SyntaxError, ValueError, MemoryError, RecursionError):
        return None


class _Reader:
    """Writes a syntax tree as LaTeX.

    `read` returns the text and its precedence: 1 for a sum, 2 for a product, 3 for a power, 4 for a
    text that needs no brackets.
    """

    def __init__(self, source: str, variables: bool) -> None:
        self._source = source
        self._variables = variables

    def read(self, node: ast.AST) -> tuple[str, int]:
        match node:
            case ast.Constant(value=bool()):
                raise _Unknown
            case ast.Constant(value=int() | float() | complex()):
                return self._number(ast.get_source_segment(self._source, node) or ""), 4
            case ast.Name(id=name):
                return self._name(name), 4
            case ast.Attribute(value=ast.Name(id=module), attr=name) if module in _MODULES:
                return self._name(name), 4
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return f"-{self._bound(operand, 2)}", 1
            case ast.UnaryOp(op=ast.UAdd(), operand=operand):
                return self.read(operand)
            case ast.BinOp(left=left, op=ast.Div(), right=right):
                return rf"\frac{{{self._text(left)}}}{{{self._text(right)}}}", 4
            case ast.BinOp(left=left, op=ast.Pow(), right=right):
                return f"{self._bound(left, 4)}^{{{self._text(right)}}}", 3
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
                binding, sign = _OPERATORS[type(op)]
                above = binding + isinstance(op, ast.Sub)
                return f"{self._bound(left, binding)} {sign} {self._bound(right, above)}", binding
            case ast.Tuple(elts=[_, *_] as elements):
                inner = ", ".join(map(self._text, elements))
                return (f"({inner})" if self._source[node.col_offset] == "(" else inner), 4
            case ast.List(elts=[ast.List(), *_] as rows) if all(
                isinstance(row, ast.List) for row in rows
            ):
                return self._matrix(rows), 4
            case ast.List(elts=[_, *_] as elements):
                return f"[{', '.join(map(self._text, elements))}]", 4
            case ast.Set(elts=elements):
                return rf"\{{{', '.join(map(self._text, elements))}\}}", 4
            case ast.Call(func=function, args=arguments, keywords=[]):
                return self._call(function, arguments), 4
        raise _Unknown

    def _text(self, node: ast.AST) -> str:
        return self.read(node)[0]

    def _bound(self, node: ast.AST, binding: int) -> str:
        text, has = self.read(node)
        return text if has >= binding else f"({text})"

    def _number(self, text: str) -> str:
        unit = ""
        if text[-1:] in "jJ":
            text, unit = text[:-1], "i"
        if not re.fullmatch(r"[\d_]*\.?[\d_]*(?:[eE][+-]?\d+)?", text):  # hexadecimal, for instance
            raise _Unknown
        return _SCIENTIFIC.sub(_written_out, text.replace("_", "")).rstrip(".") + unit

    def _matrix(self, rows: list[ast.expr]) -> str:
        columns = [row.elts if isinstance(row, ast.List) else [row] for row in rows]
        inner = r" \\ ".join(" & ".join(map(self._text, row)) for row in columns)
        return rf"\begin{{pmatrix}} {inner} \end{{pmatrix}}"

    def _name(self, name: str) -> str:
        if name in _CONSTANTS and not (self._variables and name in "EI"):
            return _CONSTANTS[name]
        if re.fullmatch("[A-Za-z]", name):
            return name
        if name in _GREEK:
            return rf"\{name}"
        if match := re.fullmatch(r"([A-Za-z])_?(\d+)", name):
            return f"{match[1]}_{{{match[2]}}}"
        raise _Unknown

    def _call(self, function: ast.expr, arguments: list[ast.expr]) -> str:
        match function:
            case ast.Name(id=name):
                pass
            case ast.Attribute(value=ast.Name(id=module), attr=name) if (
                module in _MODULES or module == "Interval"
            ):
                pass
            case _:
                raise _Unknown
        match name, arguments:
            case (("Matrix" | "array"), [ast.List(elts=[_, *_] as rows)]):
                return self._matrix(rows)
            case _, [(ast.Set() | ast.List()) as elements] if name in _SETS and elements.elts:
                return rf"\{{{', '.join(map(self._text, elements.elts))}\}}"
            case "Union", [_, _, *_]:
                return r" \cup ".join(map(self._text, arguments))
            case _, [ast.Constant(value=str() as quoted)] if name in _TYPES:
                return _Reader(quoted, False)._text(ast.parse(quoted.strip(), mode="eval").body)
            case _, [argument] if name in _TYPES:
                return f"({self._text(argument)})"
            case _, [argument] if name in _ONE:
                return _ONE[name].format(self._text(argument))
            case _, [first, second] if name in _TWO:
                return _TWO[name].format(self._text(first), self._text(second))
            case _, [_, *_] if name in _MANY:
                return _MANY[name].format(", ".join(map(self._text, arguments)))
        raise _Unknown
