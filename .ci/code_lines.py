"""Counts lines of code, without blank lines, comments and docstrings.

`python .ci/code_lines.py [FOLDER ...]` prints the number of each folder, and the sum.
"""

import ast
import io
import sys
import tokenize
from pathlib import Path

_NO_CODE = {
    *(tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT),
    *(tokenize.ENCODING, tokenize.ENDMARKER),
}


def code_lines(source: str) -> int:
    """The number of lines with code in a module's text.

    A string that is a statement of its own counts as a docstring.
    """
    texts = {
        line
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in _NO_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    return len(lines - texts)


if __name__ == "__main__":
    total = 0
    for folder in sys.argv[1:] or ["retool_env", "agents", "benchmarks"]:
        count = sum(code_lines(path.read_text()) for path in sorted(Path(folder).rglob("*.py")))
        total += count
        print(f"{count:7,}  {folder}")
    print(f"{total:7,}")
