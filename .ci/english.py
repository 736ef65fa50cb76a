"""Checks the English of docstrings, error texts, help texts and pages against a few rules.

`python .ci/english.py [PATH ...]` prints each rule with an example and the number of its findings,
then every finding as `file:line: rule: text`. The exit status is 1 if there is a finding.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("retool_env", "agents", "benchmarks", "examples", "docs")
PAGES = ("README.md", "CONTRIBUTING.md", "SECURITY.md")
START_PAGES = ("README.md", "docs/index.md", "docs/start")
"""Pages that a newcomer reads first: their sentences are short on average."""
MOST_WORDS = 16
"""The mean number of words in a sentence of the start pages is at most this."""


@dataclass(frozen=True)
class Rule:
    """A form of words that a reader has to decode."""

    name: str
    pattern: re.Pattern[str]
    bad: str
    """A text with this form."""
    good: str
    """The same, as a reader needs it."""
    kinds: frozenset[str] = frozenset({"docstring", "argument", "error", "help", "page"})
    """The kinds of text to which the rule applies."""


def _rule(name: str, pattern: str, bad: str, good: str, *kinds: str) -> Rule:
    rule = Rule(name, re.compile(pattern), bad, good)
    return Rule(name, rule.pattern, bad, good, frozenset(kinds)) if kinds else rule


RULES = (
    _rule(
        "is-none",
        r"\b(?:is|are|was|were) none\b(?! of)"
        r"|(?<![Tt]here )\b(?:is|are|was|were) no\b(?! longer| more)",
        "is no algorithm",
        "is not an algorithm",
    ),
    _rule(
        "error-there-is-no",
        r"\b(?:is|are|was|were) (?:no\b(?! longer| more)|none\b)",
        "there is no file",
        "the file was not found",
        "error",
    ),
    _rule(
        "pronoun-argument",
        r"^(?:It|Of|Its|That|Those|These|This|One|Ones|Each|What|Which|Such|Same|They|Them|As)\b"
        r"(?! of the)",
        "It.",
        "The text of one model turn.",
        "argument",
    ),
    _rule(
        "noun-clause",
        r"(?:^|[.:;] )What (?![^.]*\?)"
        r"|\b(?:of|by|for|from|in|with|than|to|on|against|as|at|under|after"
        r"|before|beside) what\b",
        "What it is given.",
        "The input of the program.",
    ),
    _rule(
        "pronoun-clause",
        r"\b(?:[Oo]ne|[Tt]hose|[Oo]nes|[Ee]ach) (?:that|which|who|whose)\b|\b[Tt]hat which\b",
        "One that is not ready yet",
        "A spare process that is still warming up",
    ),
    _rule(
        "pronoun-of",
        r"\b(?:those|that) of\b(?! (?:course))",
        "the loss is that of TRL",
        "the loss equals TRL's loss",
    ),
    _rule(
        "possessive-pronoun",
        r"\b(?:another|other|one|else)'s\b",
        "or another's",
        "of another caller",
    ),
    _rule(
        "trailing-too",
        r"\btoo[.;:!?](?:\s|$)|, too(?=[.,;:!?\s]*$|[.;:!?,])",
        "It is counted, too.",
        "It is also counted.",
    ),
    _rule(
        "sphinx",
        r":(?:class|func|meth|mod|attr|data|exc|ref|doc|obj):`|(?<!`)``(?!`)",
        ":class:`Answer`",
        "`Answer`",
        *("docstring", "argument"),
    ),
)
ARGUMENTS = "missing-arguments"
SHAPES = "missing-shape"
TERMS = "everyday-name"
LENGTH = "long-sentences"
OTHER_RULES = {
    ARGUMENTS: "a public function with three or more parameters documents each of them in `Args:`",
    SHAPES: "the text of a tensor's argument has its shape: `logprobs: (N, T)`",
    TERMS: "`each`, `found`, `said`, `own`, `place` are not names of parameters, fields, functions",
    LENGTH: f"the mean sentence of {', '.join(START_PAGES)} has at most {MOST_WORDS} words",
}
_EVERYDAY = {"each", "found", "said", "own", "place", "theirs", "ours"}


@dataclass(frozen=True)
class Text:
    """A piece of prose, with its place in a file."""

    path: Path
    line: int
    kind: str
    """`docstring`, `argument`, `error`, `help` or `page`."""
    text: str


@dataclass(frozen=True)
class Finding:
    """A place that breaks a rule."""

    path: Path
    line: int
    rule: str
    text: str

    def __str__(self) -> str:
        path = self.path.relative_to(ROOT) if self.path.is_relative_to(ROOT) else self.path
        return f"{path}:{self.line}: {self.rule}: {self.text}"


_SECTION = re.compile(r"^(Args|Attributes|Raises|Returns|Yields|Example|Examples|Note|Notes):$")
_ENTRY = re.compile(r"^ {4}(\*{0,2}\w+(?: \([^)]*\))?): *(.*)$")
_NO_PROSE = re.compile(r"`[^`]*`")


def entries(docstring: str, section: str) -> dict[str, str]:
    """The entries of a docstring's section (`Args`), each name with its text.

    A text's lines are joined by blanks.
    """
    found: dict[str, str] = {}
    current, name = "", ""
    for line in docstring.splitlines():
        if head := _SECTION.match(line):
            current, name = head[1], ""
        elif current == section and (entry := _ENTRY.match(line)):
            name = entry[1].lstrip("*").split(" ")[0]
            found[name] = entry[2]
        elif current == section and name and line.startswith(" " * 6):
            found[name] = f"{found[name]} {line.strip()}".strip()
    return found


def _docstring(node: ast.AST) -> Iterator[tuple[int, str]]:
    """The docstring of a module, class or function, and the texts that stand below fields."""
    for statement in getattr(node, "body", []):
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
            value = statement.value.value
            if isinstance(value, str):
                yield statement.lineno, _dedented(value)


def _dedented(text: str) -> str:
    lines = text.expandtabs().splitlines() or [""]
    margin = min((len(a) - len(a.lstrip()) for a in lines[1:] if a.strip()), default=0)
    return "\n".join([lines[0].strip(), *(a[margin:].rstrip() for a in lines[1:])])


def _strings(node: ast.AST) -> Iterator[tuple[int, str]]:
    """The string literals below a node; a formatted value stands as `…`, adjacent texts as one."""
    if isinstance(node, ast.JoinedStr):
        parts = [a.value if isinstance(a, ast.Constant) else "…" for a in node.values]
        yield node.lineno, "".join(map(str, parts))
    elif isinstance(node, ast.Constant):
        if isinstance(node.value, str):
            yield node.lineno, node.value
    else:
        for child in ast.iter_child_nodes(node):
            yield from _strings(child)


_HELP_CALLS = {"setting", "stage"}


def texts_of_module(path: Path) -> Iterator[Text]:
    """The docstrings, arguments, error texts and help texts of a module."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            for line, docstring in _docstring(node):
                yield Text(path, line, "docstring", docstring)
                for section in ("Args", "Attributes", "Raises"):
                    kind = "docstring" if section == "Raises" else "argument"
                    for text in entries(docstring, section).values():
                        yield Text(path, line, kind, text)
        elif isinstance(node, ast.Raise) and node.exc:
            for line, text in _strings(node.exc):
                yield Text(path, line, "error", text)
        elif isinstance(node, ast.Call):
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            helped = [a.value for a in node.keywords if a.arg in ("help", "description")]
            for value in helped + (node.args[1:2] if name in _HELP_CALLS else []):
                for line, text in _strings(value):
                    yield Text(path, line, "help", text)


def texts_of_page(path: Path) -> Iterator[Text]:
    """The paragraphs of a Markdown page, without its code blocks."""
    paragraph: list[str] = []
    start, fence = 1, False
    lines = path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate([*lines, ""], 1):
        marked = line.lstrip().startswith(("```", "~~~"))
        if not line.strip() or marked or fence or line.lstrip().startswith(("#", "|")):
            if paragraph:
                yield Text(path, start, "page", " ".join(paragraph))
            paragraph, start = [], number + 1
            if line.lstrip().startswith("|") and not fence:
                yield Text(path, number, "page", line)
            fence = fence != marked
        else:
            item = re.match(r"\s*(?:[-*]|\d+\.) ", line)
            if item and paragraph:
                yield Text(path, start, "page", " ".join(paragraph))
                paragraph, start = [], number
            paragraph.append(line.strip())


def forms(text: Text) -> Iterator[Finding]:
    """The banned forms in a text. Code in backquotes is not prose."""
    for rule in RULES:
        if text.kind not in rule.kinds:
            continue
        prose = text.text if rule.name == "sphinx" else _NO_PROSE.sub("`…`", text.text)
        prose = re.sub(r"\s+", " ", prose)
        for match in rule.pattern.finditer(prose):
            excerpt = prose[max(match.start() - 30, 0) : match.end() + 40]
            yield Finding(text.path, text.line, rule.name, excerpt)


def _parameters(node: ast.FunctionDef | ast.AsyncFunctionDef) -> list[ast.arg]:
    arguments = node.args
    named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    named += [a for a in (arguments.vararg, arguments.kwarg) if a]
    return [a for a in named if a.arg not in ("self", "cls") and not a.arg.startswith("_")]


def signatures(path: Path) -> Iterator[Finding]:
    """Public functions without a text for each parameter, tensors without a shape, vague names."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    yield from _functions(path, tree, "")


def _functions(path: Path, node: ast.AST, owner: str) -> Iterator[Finding]:
    for child in getattr(node, "body", []):
        if isinstance(child, ast.ClassDef):
            for field in child.body:
                name = getattr(getattr(field, "target", None), "id", "")
                if isinstance(field, ast.AnnAssign) and name in _EVERYDAY:
                    yield Finding(path, field.lineno, TERMS, f"{child.name}.{name}")
            if not child.name.startswith("_"):
                yield from _functions(path, child, ast.get_docstring(child) or "")
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _function(path, child, owner)


def _function(
    path: Path, node: ast.FunctionDef | ast.AsyncFunctionDef, owner: str
) -> Iterator[Finding]:
    parameters = _parameters(node)
    for name in {node.name, *(a.arg for a in parameters)} & _EVERYDAY:
        yield Finding(path, node.lineno, TERMS, f"{node.name}: {name}")
    if node.name.startswith("_") and node.name != "__init__":
        return
    docstring = ast.get_docstring(node) or ""
    texts = entries(docstring, "Args")
    if node.name == "__init__":
        texts |= entries(owner, "Args") | entries(owner, "Attributes")
    overrides = any(getattr(a, "id", "") == "override" for a in node.decorator_list)
    missing = [a.arg for a in parameters if not texts.get(a.arg)]
    if len(parameters) >= 3 and missing and not overrides:
        yield Finding(path, node.lineno, ARGUMENTS, f"{node.name}({', '.join(missing)})")
    for parameter in parameters:
        annotation = ast.unparse(parameter.annotation) if parameter.annotation else ""
        text = texts.get(parameter.arg, "")
        if text and re.search(r"\bTensor\b", annotation) and not re.search(r"\(|shape", text):
            yield Finding(path, node.lineno, SHAPES, f"{node.name}({parameter.arg}): {text}")


def sentences(paths: list[Path]) -> list[int]:
    """The number of words of each sentence of these pages, tables and code left out."""
    counts = []
    for path in paths:
        for text in texts_of_page(path):
            prose = re.sub(r"\]\([^)]*\)", "]", text.text)
            if prose.lstrip().startswith(("|", "<", "!", "---", ":::")):
                continue
            for sentence in re.split(r"(?<=[.!?])\s+", prose):
                if words := [a for a in sentence.split() if re.search(r"\w", a)]:
                    counts.append(len(words))
    return counts


def _files(paths: list[str], pattern: str) -> list[Path]:
    files: list[Path] = []
    for path in map(Path, paths):
        path = path if path.is_absolute() else ROOT / path
        files += sorted(path.rglob(pattern)) if path.is_dir() else [path]
    return [a for a in files if a.match(pattern) and a.exists()]


def findings(paths: list[str]) -> list[Finding]:
    """All findings in files and folders, in the order of files and lines."""
    results: list[Finding] = []
    for path in _files(paths, "*.py"):
        results += [a for text in texts_of_module(path) for a in forms(text)]
        results += signatures(path)
    for path in _files(paths, "*.md"):
        results += [a for text in texts_of_page(path) for a in forms(text)]
    unique = dict.fromkeys(results)
    return sorted(unique, key=lambda a: (str(a.path), a.line))


def main(paths: list[str]) -> int:
    """Prints rules, counts and findings; returns the exit status."""
    results = findings(paths or [*FOLDERS, *PAGES])
    lengths = sentences(_files(list(START_PAGES), "*.md")) if not paths else []
    for result in results:
        print(result)
    counts = [a.rule for a in results]
    for rule in RULES:
        print(f"{counts.count(rule.name):5}  {rule.name}: not {rule.bad!r}, but {rule.good!r}")
    for name in (ARGUMENTS, SHAPES, TERMS):
        print(f"{counts.count(name):5}  {name}: {OTHER_RULES[name]}")
    mean = sum(lengths) / len(lengths) if lengths else 0.0
    if lengths:
        print(f"{int(mean > MOST_WORDS):5}  {LENGTH}: {OTHER_RULES[LENGTH]}; it has {mean:.1f}")
    return int(bool(results) or mean > MOST_WORDS)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
