"""Running programs that a model wrote.

* [`execution`][retool_env.execution]: what a run is given and what it returns (`Limits`,
  `Execution`, `Outcome`), and the `Sandbox` and `Session` protocols.
* [`pool`][retool_env.sandbox.pool]: warm guests, and the programs that run in them.
* [`nsjail`][retool_env.sandbox.nsjail]: guests in jails. The default.
* [`unsafe`][retool_env.sandbox.unsafe]: guests without, for machines that have no jails.
* [`remote`][retool_env.sandbox.remote]: guests on other machines, behind `retool serve`.
* [`guest`][retool_env.sandbox.guest]: what runs at the other end.

Without a working jail, `make_sandbox` raises `SandboxUnavailable`; it never falls back to the
unsafe sandbox, which has to be asked for by name.

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
        """Says what to do where no programs can be run."""
        raise SandboxUnavailable(
            f"programs run on Linux only, and this is {sys.platform}: run `retool serve` on a Linux "
            "machine, in a container or in WSL 2, and give its URL: sandbox='http://HOST:8080'"
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
        name: `"nsjail"`, `"unsafe"`, or the URLs of sandbox servers, with commas between them; these are sent the
            token in the environment variable `RETOOL_SANDBOX_TOKEN`, if there is one.
        **settings: Of that sandbox: `concurrency`, `packages`, ...

    Raises:
        SandboxUnavailable: it cannot work on this machine; the message says what is missing.
        ValueError: there is no sandbox of that name.
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
