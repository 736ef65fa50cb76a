"""The faults that are made inside the program's process.

The text of this module and a call of one of its functions are a prelude: the process runs them
before the program (`Files.prelude`). So the module imports only the standard library, and an import
of it changes nothing. Each function may be called again in the same process.
"""

from __future__ import annotations

import builtins
import inspect
import sys
from collections.abc import Callable  # unhashed
from importlib.machinery import PathFinder
from types import FrameType, FunctionType
from typing import Any


def hide(package: str, session: bool) -> None:
    """Make a package impossible to import, as if it was not installed.

    Objects of the package that the program holds already stay usable.

    Args:
        package: The name of the package.
        session: Whether earlier blocks may have bound names of the package. The package's own
            functions can then go on importing its modules.
    """
    if PathFinder not in sys.meta_path:
        return  # the package is hidden already
    modules = {name: sys.modules.pop(name) for name in list(sys.modules) if _in(package, name)}
    depth = 0  # of imports by the package itself

    class Finder(PathFinder):
        @classmethod
        def find_spec(cls, fullname: str, path: Any = None, target: Any = None) -> Any:
            if _in(package, fullname) and not depth:
                report("missing_package")  # noqa: F821  # unhashed
                return None  # not an error: Python's own error then has no further frames
            return super().find_spec(fullname, path, target)

    Finder.__name__, Finder.__qualname__ = PathFinder.__name__, PathFinder.__qualname__
    Finder.__module__ = PathFinder.__module__
    # A subclass in the place of the original class, whose find_spec cannot be set.
    sys.meta_path[sys.meta_path.index(PathFinder)] = Finder
    if not session:
        return
    original = builtins.__import__

    def __import__(
        name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0
    ) -> Any:
        try:
            full = name
            if level and globals:
                parts = str(globals.get("__package__")).split(".")
                full = ".".join([*parts[: len(parts) - level + 1], *([name] if name else [])])
            if not (_in(package, full) and _is_called_by(package, sys._getframe(1))):
                return original(name, globals, locals, fromlist, level)
            return own_import(full, name, globals, locals, fromlist, level)
        except BaseException as error:
            error.__traceback__ = error.__traceback__ and error.__traceback__.tb_next
            raise  # without this frame, which a printed traceback would show

    def own_import(full: str, name: str, *arguments: Any) -> Any:
        """An import by the package itself."""
        nonlocal depth
        fromlist = arguments[2]
        module = modules.get(full)
        if module is not None and fromlist and all(hasattr(module, n) for n in fromlist):
            return module  # the usual case, and the fastest
        sys.modules.update(modules)
        depth += 1
        try:
            return original(name, *arguments)
        finally:
            depth -= 1
            if not depth:
                for loaded in [loaded for loaded in sys.modules if _in(package, loaded)]:
                    modules[loaded] = sys.modules.pop(loaded)

    builtins.__import__ = __import__
    builtins.__import__ = _in_place_of(original, __import__)  # unhashed


def _in(package: str, module: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def _is_called_by(package: str, frame: FrameType | None) -> bool:
    """Whether the code of a frame belongs to a package.

    Code that `exec` runs in a namespace without a name belongs to its caller.
    """
    while frame is not None and "__name__" not in frame.f_globals:
        frame = frame.f_back
    return frame is not None and _in(package, str(frame.f_globals["__name__"]))


def drop_factors() -> None:
    """Make `sympy.factorint` drop a factor in calls from outside of sympy.

    The function stays the same object, so names that are bound to it already give wrong results
    as well. Results with a single prime are right.
    """
    try:
        from sympy.ntheory.factor_ import factorint
    except ImportError:
        return
    if factorint.__code__.co_flags & inspect.CO_VARKEYWORDS:
        return  # it is changed already
    right = FunctionType(
        factorint.__code__,
        factorint.__globals__,
        factorint.__name__,
        factorint.__defaults__,
        factorint.__closure__,
    )
    right.__kwdefaults__ = factorint.__kwdefaults__

    def wrong(*args: Any, **kwargs: Any) -> Any:
        try:
            factors = right(*args, **kwargs)
        except BaseException as error:
            error.__traceback__ = error.__traceback__ and error.__traceback__.tb_next
            raise  # without this frame, which a printed traceback would show
        # Frame 0 is this function, frame 1 `factorint` with its new code.
        if _is_called_by("sympy", sys._getframe(2)):
            return factors
        if isinstance(factors, list) and len(factors) > 1:
            report("wrong_function")  # noqa: F821  # unhashed
            return factors[:-1]
        if isinstance(factors, dict) and sum(factors.values()) > 1:
            report("wrong_function")  # noqa: F821  # unhashed
            last = max(factors)
            fewer = {prime: power - (prime == last) for prime, power in factors.items()}
            return {prime: power for prime, power in fewer.items() if power}
        return factors

    def call(*args: Any, **kwargs: Any) -> Any:
        function: Any = "function"
        try:
            return function(*args, **kwargs)
        except BaseException as error:
            error.__traceback__ = error.__traceback__ and error.__traceback__.tb_next
            raise

    old = factorint.__code__
    factorint.__signature__ = inspect.signature(factorint)
    factorint.__code__ = call.__code__.replace(
        # The function is a constant of the code: a name would be visible in the module.
        co_consts=tuple(wrong if c == "function" else c for c in call.__code__.co_consts),
        co_name=old.co_name,
        co_qualname=old.co_qualname,
        co_filename=old.co_filename,
        co_firstlineno=old.co_firstlineno,
    )


# The rest is not hashed.

report: Callable[[str], object]
"""Tells the host that a fault took place; the sandbox gives this name to preludes."""


def _in_place_of(original: Callable[..., Any], function: Callable[..., Any]) -> Callable[..., Any]:
    """An object that prints as a built-in function, and calls another function without a frame."""

    def attribute(self: object, name: str) -> Any:
        return getattr(original, name)

    names = {
        "__call__": staticmethod(function),
        "__repr__": lambda self: repr(original),
        "__getattr__": attribute,
        "__module__": "builtins",
        "__doc__": original.__doc__,
        "__slots__": (),
    }
    made: Callable[..., Any] = type(type(original).__name__, (), names)()
    return made
