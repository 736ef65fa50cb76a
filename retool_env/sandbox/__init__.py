"""Running programs that a model wrote.

* [`execution`][retool_env.sandbox.execution]: what a run is given and what it returns (`Limits`,
  `Execution`, `Outcome`), and the `Sandbox` protocol.
* [`process`][retool_env.sandbox.process]: supervision of one program: start, drain, limit, judge.
* [`nsjail`][retool_env.sandbox.nsjail]: every program in a jail of its own. The default.
* [`unsafe`][retool_env.sandbox.unsafe]: a plain child process, for machines without jails.
* [`guest`][retool_env.sandbox.guest]: the script at the other end that runs the program.

Without a working jail, `make_sandbox` raises `SandboxUnavailable`; it never falls back to the
unsafe sandbox, which has to be asked for by name.

Example:
    >>> with make_sandbox() as sandbox:
    ...     sandbox.run("print(6 * 7, end='')")  # doctest: +ELLIPSIS
    Execution(outcome=<Outcome.OK: 'ok'>, stdout='42', error='', duration=...)
"""

from retool_env.sandbox.execution import (
    Execution,
    Limits,
    Outcome,
    Sandbox,
    SandboxUnavailable,
)
from retool_env.sandbox.nsjail import NsjailSandbox, check
from retool_env.sandbox.unsafe import UnsafeSandbox

__all__ = [
    "Execution",
    "Limits",
    "NsjailSandbox",
    "Outcome",
    "Sandbox",
    "SandboxUnavailable",
    "UnsafeSandbox",
    "check",
    "make_sandbox",
]

_SANDBOXES = {"nsjail": NsjailSandbox, "unsafe": UnsafeSandbox}


def make_sandbox(name: str = "nsjail") -> Sandbox:
    """Builds the sandbox called `name`: `"nsjail"` or `"unsafe"`.

    Raises:
        SandboxUnavailable: it cannot work on this machine; the message says what is missing.
        ValueError: there is no sandbox of that name.
    """
    if name not in _SANDBOXES:
        raise ValueError(f"no sandbox is called {name!r}; choose one of {sorted(_SANDBOXES)}")
    return _SANDBOXES[name]()
