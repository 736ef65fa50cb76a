"""Registry: the algorithms are the modules in `agents/`, and a user's own modules.

An algorithm is a module with a dataclass `Settings` and a function `train(settings, folder,
resume)`, which returns the path of the trained model. A class or another object with these two
attributes also works. An algorithm needs no registration.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from agents.base.settings import SettingsError, field_names, nearest
from retool_env.files import file_fault

HERE = Path(__file__).parents[1]

OWN_FORMS = "path/to/file.py, package.module, or one of these with :name, a class or object in it"
"""Help text: the forms in which a user names an algorithm outside `agents/`."""


def algorithms() -> list[str]:
    """The names of the algorithms in `agents/`. The modules are not imported."""
    return sorted(
        path.stem for path in HERE.glob("*.py") if {"Settings", "train"} <= _defined(path)
    )


def load_algorithm(name: str) -> Any:
    """Load an algorithm: an object with the attributes `Settings` and `train`.

    Args:
        name: A name from `algorithms()`, the path of a Python file, or the dotted name of a module.
            A path or a dotted name may be followed by `:name`, the name of an object in the module;
            a class is instantiated without arguments.

    Raises:
        SettingsError: If the algorithm is not found, or lacks `Settings` or `train`.
    """
    source, colon, part = name.partition(":")
    if source.endswith(".py"):
        module = _from_file(Path(source))
    elif "." in source or colon:
        module = _from_name(source)
    elif source in algorithms():
        module = importlib.import_module(f"agents.{source}")
    else:
        raise SettingsError(
            f"no algorithm {name!r}{nearest(name, algorithms())}; choose from "
            f"{', '.join(algorithms())}, or name your own: {OWN_FORMS}"
        )
    algorithm = _in_module(module, source, part) if colon else module
    _check(name, algorithm)
    return algorithm


def section_of(name: str, algorithm: Any) -> str:
    """The name of an algorithm's section in a preset.

    It is the name of the object after the colon or, without a colon, of the module.

    Args:
        name: The name by which the algorithm was loaded; see `load_algorithm`.
        algorithm: The algorithm.
    """
    return name.partition(":")[2] or algorithm.__name__.rpartition(".")[2]


def _in_module(module: ModuleType, source: str, name: str) -> Any:
    if not hasattr(module, name):
        public = [attribute for attribute in vars(module) if not attribute.startswith("_")]
        raise SettingsError(f"{source} does not define {name!r}{nearest(name, public)}")
    algorithm = getattr(module, name)
    if not isinstance(algorithm, type):
        return algorithm
    try:
        return algorithm()
    except TypeError as error:
        raise SettingsError(f"{source}:{name} can't be made without arguments: {error}") from error


def _from_file(path: Path) -> ModuleType:
    if fault := file_fault(path):
        raise SettingsError(fault)
    if path.resolve().parent == HERE:
        return importlib.import_module(f"agents.{path.stem}")
    sys.path.insert(0, str(path.resolve().parent))  # as for a script: it may import its neighbours
    spec = importlib.util.spec_from_file_location(f"_algorithm.{path.stem}", path)
    assert spec is not None and spec.loader is not None  # because the name ends in .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look up their types there
    spec.loader.exec_module(module)
    return module


def _from_name(name: str) -> ModuleType:
    if not name or name.startswith("."):
        raise SettingsError(f"no algorithm {name!r}: name {OWN_FORMS}")
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # the module exists, but one of its imports does not
        raise SettingsError(
            f"no algorithm {name!r}: {error}; name a module that can be imported from here, or a "
            f"file: {OWN_FORMS}"
        ) from error


def _check(name: str, algorithm: Any) -> None:
    settings = getattr(algorithm, "Settings", None)
    missing = []
    if not (isinstance(settings, type) and dataclasses.is_dataclass(settings)):
        missing.append("a dataclass `Settings`")
    elif "name" not in field_names(settings):
        missing.append("a field `name`, the run's name, in `Settings`")
    if not callable(getattr(algorithm, "train", None)):
        missing.append("a function `train(settings, folder, resume)`")
    if missing:
        raise SettingsError(f"{name} is not an algorithm: it lacks {' and '.join(missing)}")


def _defined(path: Path) -> set[str]:
    """The names of the functions and classes at the top level of a file."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except SyntaxError:
        return {"Settings", "train"}  # importing the file then reports the syntax error
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
