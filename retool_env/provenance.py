"""The provenance of a result: the environments' revision, and the versions of the packages."""

from __future__ import annotations

import importlib.metadata
import platform

REVISION = 4
"""The revision of the environments, a whole number. It rises whenever episodes change: within one
revision, equal seeds, settings and actions give equal episodes. CHANGELOG.md lists the changes."""

PACKAGES = (
    *("retool-env", "gymnasium", "torch", "transformers", "trl", "peft"),
    *("numpy", "sympy", "math-verify"),
)
"""The packages that may change a result."""


def versions() -> dict[str, str]:
    """The versions of Python, of the platform and of `PACKAGES`, by name."""
    named = {"python": platform.python_version(), "platform": platform.platform()}
    for package in PACKAGES:
        try:
            named[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            named[package] = "not installed"
    return named
