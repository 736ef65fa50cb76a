"""What made a result: the environments' revision, the versions of Python and of the packages that matter to it."""

from __future__ import annotations

import importlib.metadata
import platform

REVISION = 3
"""The revision of the environments, a whole number. It is raised whenever an episode changes: of one revision, equal
seed, settings and actions give equal episodes. CHANGELOG.md says what each changed."""

PACKAGES = (
    "retool-env",
    "gymnasium",
    "torch",
    "transformers",
    "trl",
    "peft",
    "numpy",
    "sympy",
    "math-verify",
)


def versions() -> dict[str, str]:
    """Python's and the packages' versions, by name."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found
