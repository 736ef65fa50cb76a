"""Sandboxes: they run the programs that a model wrote.

* [`execution`][retool_env.execution]: the limits and the result of a program (`Limits`,
  `Execution`, `Outcome`), and the protocols `Sandbox` and `Session`.
* [`local`][retool_env.sandbox.local]: programs and sessions on this machine, in a
  [`pool`][retool_env.sandbox.pool] of warm guests.
* [`nsjail`][retool_env.sandbox.nsjail]: guests in jails. The default.
* [`unsafe`][retool_env.sandbox.unsafe]: guests without a jail, for machines that cannot make one.
* [`remote`][retool_env.sandbox.remote]: guests on other machines, behind `retool serve`.
* [`guest`][retool_env.sandbox.guest]: the code that runs inside a guest.

Without a working jail, `make_sandbox` raises `SandboxUnavailable`. It never falls back to the
unsafe sandbox, which a caller has to name.

Example:
    >>> with make_sandbox() as sandbox:
    ...     sandbox.run("print(6 * 7, end='')")  # doctest: +ELLIPSIS
    Execution(outcome=<Outcome.OK: 'ok'>, stdout='42', error='', traceback='', duration=...)
"""

import os
import sys
from typing import Any

from retool_env.errors import SettingsError
from retool_env.execution import Execution, Limits, Outcome, Sandbox, SandboxUnavailable, Session
from retool_env.sandbox.remote import RemoteSandbox
from retool_env.servers.address import shown_url, split_urls

if sys.platform == "linux":
    from retool_env.sandbox.nsjail import NsjailSandbox
    from retool_env.sandbox.unsafe import UnsafeSandbox
else:

    def NsjailSandbox(*_: object, **__: object) -> Sandbox:
        """Raises an error that says where programs can run."""
        raise SandboxUnavailable(
            f"programs run on Linux only, and this is {sys.platform}: run `retool serve` on a "
            "Linux machine, in a container or in WSL 2, and give its URL: "
            "sandbox='http://HOST:8080'"
        )

    UnsafeSandbox = NsjailSandbox

__all__ = [
    "Execution",
    "Limits",
    "NsjailSandbox",
    "Outcome",
    "RemoteSandbox",
    "Sandbox",
    "SandboxUnavailable",
    "Session",
    "UnsafeSandbox",
    "make_sandbox",
]

_SANDBOXES = {"nsjail": NsjailSandbox, "unsafe": UnsafeSandbox}


def make_sandbox(name: str = "nsjail", **settings: Any) -> Sandbox:
    """Builds the sandbox called `name`.

    Args:
        name: `"nsjail"`, `"unsafe"`, or the URLs of sandbox servers, separated by commas. Servers
            are sent the token in the environment variable `RETOOL_SANDBOX_TOKEN`, if it is set.
        **settings: The arguments of that sandbox's class, such as `concurrency` or `packages`.

    Raises:
        SandboxUnavailable: The sandbox cannot work on this machine. The message says what is
            missing.
        ValueError: No sandbox has that name, or a setting is invalid.
    """
    if not isinstance(name, str):
        raise SettingsError(f"a sandbox's name must be a str, not {name!r:.60}")
    if name.startswith(("http://", "https://")):
        token = os.environ.get("RETOOL_SANDBOX_TOKEN")
        urls = split_urls(name, "a sandbox", "http://host:8080")
        return RemoteSandbox(urls, **{"token": token, **settings})
    if name not in _SANDBOXES:
        known = ", ".join(sorted(_SANDBOXES))
        raise SettingsError(
            f"no sandbox is called {shown_url(name)!r}; choose {known}, or a server's http URL"
        )
    return _SANDBOXES[name](**settings)
