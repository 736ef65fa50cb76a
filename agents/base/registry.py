"""Which algorithms there are: the files of this folder that are made like one, and anyone's own.

An algorithm is a module with `Settings`, a dataclass, and `train(settings, folder, resume)`, which returns where the trained
model is. So may be a class, or another object in a module. There is no list to enter it in.
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

OWN = "path/to/file.py, package.module, or either with :name, a class or object in it"
"""How algorithms of one's own are named."""


def algorithms() -> list[str]:
    """Names of the algorithms in this folder, without importing them."""
    return sorted(
        path.stem for path in HERE.glob("*.py") if {"Settings", "train"} <= _defined(path)
    )


def load_algorithm(name: str) -> Any:
    """An algorithm: what has `Settings` and `train`.

    Args:
        name: One of `algorithms()`, the path of a Python file, or the name of a module that can be imported, with a dot in it.
            Behind the latter two, `:name` may name an object in there; a class is instantiated without arguments.

    Raises:
        SettingsError: If there is none, or something is missing in it.
    """
    place, colon, part = name.partition(":")
    if place.endswith(".py"):
        module = _from_file(Path(place))
    elif "." in place or colon:
        module = _from_name(place)
    elif place in algorithms():
        module = importlib.import_module(f"agents.{place}")
    else:
        raise SettingsError(
            f"no algorithm {name!r}{nearest(name, algorithms())}; there are {', '.join(algorithms())}, and those of your own: "
            f"{OWN}"
        )
    found = _in_module(module, place, part) if colon else module
    _check(name, found)
    return found


def section_of(name: str, algorithm: Any) -> str:
    """The section of a preset that an algorithm of such a name takes: its module's or, where one is named, its object's."""
    return name.partition(":")[2] or algorithm.__name__.rpartition(".")[2]


def _in_module(module: ModuleType, place: str, name: str) -> Any:
    if not hasattr(module, name):
        public = [each for each in vars(module) if not each.startswith("_")]
        raise SettingsError(f"there is no {name!r} in {place}{nearest(name, public)}")
    found = getattr(module, name)
    if not isinstance(found, type):
        return found
    try:
        return found()
    except TypeError as error:
        raise SettingsError(f"{place}:{name} can't be made without arguments: {error}") from error


def _from_file(path: Path) -> ModuleType:
    if fault := file_fault(path):
        raise SettingsError(fault)
    if path.resolve().parent == HERE:
        return importlib.import_module(f"agents.{path.stem}")
    sys.path.insert(
        0, str(path.resolve().parent)
    )  # as of a script, so that it finds what lies beside it
    spec = importlib.util.spec_from_file_location(f"_algorithm.{path.stem}", path)
    assert spec is not None and spec.loader is not None  # the name ends in .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look their types up
    spec.loader.exec_module(module)
    return module


def _from_name(name: str) -> ModuleType:
    if not name or name.startswith("."):
        raise SettingsError(f"no algorithm {name!r}: name {OWN}")
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # something that the module itself imports
        raise SettingsError(
            f"no algorithm {name!r}: {error}; name what can be imported from here, or a file: {OWN}"
        ) from error


def _check(name: str, algorithm: Any) -> None:
    settings = getattr(algorithm, "Settings", None)
    missing = []
    if not (isinstance(settings, type) and dataclasses.is_dataclass(settings)):
        missing.append("a dataclass `Settings`")
    elif "name" not in field_names(settings):
        missing.append("a field `name`, of the run's folder, in `Settings`")
    if not callable(getattr(algorithm, "train", None)):
        missing.append("a function `train(settings, folder, resume)`")
    if missing:
        raise SettingsError(f"{name} is no algorithm: it has not {', nor '.join(missing)}")


def _defined(path: Path) -> set[str]:
    """What a file defines at its top level."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except SyntaxError:
        return {"Settings", "train"}  # who names it is told what is wrong
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
