"""Finds the files of an interpreter that programs need.

This module imports only the standard library, so that another interpreter can run it.
"""

import importlib.metadata
import importlib.util
import json
import os
import re
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TypedDict

PACKAGES_FOLDER = "/packages"
"""The folder of the packages in the jail."""


_INSTALLED_AS = {
    "bs4": "beautifulsoup4",
    "cv2": "opencv-python-headless",
    "dateutil": "python-dateutil",
    "PIL": "Pillow",
    "sklearn": "scikit-learn",
    "yaml": "PyYAML",
}
"""Import names whose distributions have a different name. Installed distributions name their
imports themselves."""


class MissingPackages(ModuleNotFoundError):
    """The interpreter lacks packages; the message says how to install exactly these.

    Args:
        names: The names of the missing packages.
    """

    def __init__(self, names: list[str]) -> None:
        installed = " ".join(_INSTALLED_AS.get(name, name) for name in names)
        super().__init__(
            f"no package {', '.join(names)} for the programs: "
            f"`{sys.executable} -m pip install {installed}`"
        )


class Survey(TypedDict):
    """The files of an interpreter that programs need, including requirements of the packages."""

    executable: str
    """The path of the interpreter."""
    stdlib: str
    """The folder of the standard library."""
    mounts: list[tuple[str, str]]
    """Pairs of a path on the host, shared libraries included, and the path in the jail."""
    packages: list[str]
    """The import names of the packages."""


def survey(packages: list[str]) -> Survey:
    """Surveys the interpreter that runs this module.

    Args:
        packages: Import names or distribution names: `"yaml"` or `"PyYAML"`.

    Raises:
        MissingPackages: The interpreter lacks a package.
    """
    imports = _import_names(packages)
    # The real executable, not the link or the launcher of a virtual environment.
    executable = os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)
    stdlib = sysconfig.get_path("stdlib")
    mounts = {executable: executable, stdlib: stdlib}
    modules = [file for file in Path(stdlib, "lib-dynload").glob("*.so") if "tk" not in file.name]
    for path in _files(imports):
        mounts[str(path)] = f"{PACKAGES_FOLDER}/{path.name}"
        modules += path.rglob("*.so*") if path.is_dir() else [path] if ".so" in path.name else []
    # The loader itself lists the libraries that it would load; it runs none of the preloaded files.
    trace = {"LD_TRACE_LOADED_OBJECTS": "1", "LD_PRELOAD": ":".join(map(str, modules))}
    if "LD_LIBRARY_PATH" in os.environ:  # the loader needs nothing else of this environment
        trace["LD_LIBRARY_PATH"] = os.environ["LD_LIBRARY_PATH"]
    listing = subprocess.run([executable], env=trace, capture_output=True, text=True)
    folders = tuple(f"{folder}/" for folder in mounts)
    for word in listing.stdout.split():
        if word.startswith("/") and not word.startswith(folders):
            mounts[os.path.realpath(word)] = word
    return {
        "executable": executable,
        "stdlib": stdlib,
        "mounts": list(mounts.items()),
        "packages": imports,
    }


def _import_names(packages: list[str]) -> list[str]:
    """The import names of packages, which may be import names or distribution names."""
    unknown = [package for package in packages if not _exists(package)]
    installed = importlib.metadata.packages_distributions() if unknown else {}  # takes a while
    names = {p: _names_of(p, installed) if p in unknown else [p] for p in packages}
    if missing := [package for package in names if not names[package]]:
        raise MissingPackages(missing)
    return list(dict.fromkeys(name for several in names.values() for name in several))


def _names_of(package: str, installed: Mapping[str, list[str]]) -> list[str]:
    """The import names of a distribution, or of a package whose name differs only in case.

    Args:
        package: A name that cannot be imported.
        installed: The distributions of each import name.
    """
    wanted = _normal(package)
    alike = [name for name in installed if _normal(name) == wanted]
    provided = [name for name, those in installed.items() if wanted in map(_normal, those)]
    names = alike or sorted(provided)
    return [name for name in names if not name.startswith("_") and _exists(name)]


def _exists(name: str) -> bool:
    """Whether a module or package of that name can be imported."""
    try:
        return name.replace(".", "").isidentifier() and importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):  # no parent; an empty part
        return False


def _files(imports: list[str]) -> list[Path]:
    """The files and folders of the imported packages and of their requirements."""
    found: dict[Path, None] = {}
    seen: set[str] = set()

    def add(distribution: importlib.metadata.Distribution) -> None:
        if (name := _normal(distribution.name)) in seen:
            return
        seen.add(name)
        tops = {file.parts[0] for file in distribution.files or ()}
        for top in sorted(tops - {"..", "__pycache__"}):
            path = Path(str(distribution.locate_file(top)))
            if path.exists() and not top.endswith((".dist-info", ".egg-info", ".pth")):
                found[path] = None
        for requirement in distribution.requires or ():
            if "extra ==" not in requirement:
                # A missing package is for other systems, or its import fails as it would outside.
                with suppress(importlib.metadata.PackageNotFoundError):
                    name = re.split(r"[^\w.-]", requirement.strip())[0]
                    add(importlib.metadata.distribution(name))

    for package in dict.fromkeys(name.partition(".")[0] for name in imports):
        spec = importlib.util.find_spec(package)
        assert spec is not None
        try:
            add(importlib.metadata.distribution(package))
        except importlib.metadata.PackageNotFoundError:
            for name in importlib.metadata.packages_distributions().get(package, ()):
                add(importlib.metadata.distribution(name))
        origin = Path((spec.submodule_search_locations or [spec.origin or ""])[0])
        found[origin] = None
    return list(found)


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    try:
        print(json.dumps(survey(sys.argv[1:])))
    except MissingPackages as error:
        sys.exit(str(error))
