"""What of an interpreter's files a program needs. Standard library only: another interpreter can run it too."""

import importlib.metadata
import importlib.util
import json
import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

PACKAGES_FOLDER = "/packages"
"""Where packages appear in the jail."""


def survey(packages: list[str]) -> dict[str, object]:
    """Looks at the interpreter that runs this.

    Args:
        packages: Names as they are imported.

    Returns:
        `executable`: its path; `stdlib`: the folder of its standard library; `mounts`: pairs of a path and the path
        where it is to appear. What the packages require is included, and the shared libraries of all.

    Raises:
        ModuleNotFoundError: It has no such package.
    """
    # The real executable, not the link or the launcher of a virtual environment.
    executable = os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)
    stdlib = sysconfig.get_path("stdlib")
    mounts = {executable: executable, stdlib: stdlib}
    modules = [file for file in Path(stdlib, "lib-dynload").glob("*.so") if "tk" not in file.name]
    for path in _files(packages):
        mounts[str(path)] = f"{PACKAGES_FOLDER}/{path.name}"
        modules += path.rglob("*.so*") if path.is_dir() else [path] if ".so" in path.name else []
    # The loader itself says what it would load; the preloaded files are only looked at.
    trace = {"LD_TRACE_LOADED_OBJECTS": "1", "LD_PRELOAD": ":".join(map(str, modules))}
    listing = subprocess.run([executable], env=os.environ | trace, capture_output=True, text=True)
    folders = tuple(f"{folder}/" for folder in mounts)
    for word in listing.stdout.split():
        if word.startswith("/") and not word.startswith(folders):
            mounts[os.path.realpath(word)] = word
    return {"executable": executable, "stdlib": stdlib, "mounts": list(mounts.items())}


def _files(packages: list[str]) -> list[Path]:
    """The files and folders of packages, and of what they require."""
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
                try:
                    add(
                        importlib.metadata.distribution(
                            re.split(r"[^\w.-]", requirement.strip())[0]
                        )
                    )
                except importlib.metadata.PackageNotFoundError:
                    continue  # for other systems or versions, or really missing: then it fails as it would outside

    for package in packages:
        spec = importlib.util.find_spec(package)
        if spec is None:
            raise ModuleNotFoundError(package)
        try:
            add(importlib.metadata.distribution(package))
        except importlib.metadata.PackageNotFoundError:
            for name in importlib.metadata.packages_distributions().get(package, ()):
                add(importlib.metadata.distribution(name))
        origin = Path((spec.submodule_search_locations or [spec.origin])[0] or "")
        found[origin] = None
    return list(found)


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    try:
        print(json.dumps(survey(sys.argv[1:])))
    except ModuleNotFoundError as error:
        sys.exit(f"no package {error}")
