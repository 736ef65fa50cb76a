"""What of an interpreter's files a program needs. Standard library only: another interpreter can run it too."""

import importlib.metadata
import importlib.util
import json
import os
import re
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from typing import TypedDict

PACKAGES_FOLDER = "/packages"
"""Where packages appear in the jail."""


_INSTALLED_AS = {
    "bs4": "beautifulsoup4",
    "cv2": "opencv-python-headless",
    "dateutil": "python-dateutil",
    "PIL": "Pillow",
    "sklearn": "scikit-learn",
    "yaml": "PyYAML",
}
"""Names of imports whose packages are called otherwise; of those that are installed, the installation says so itself."""


class MissingPackages(ModuleNotFoundError):
    """The interpreter lacks packages; the message says how to install them, and them alone."""

    def __init__(self, names: list[str]) -> None:
        installed = " ".join(_INSTALLED_AS.get(name, name) for name in names)
        super().__init__(
            f"no package {', '.join(names)} for the programs: "
            f"`{sys.executable} -m pip install {installed}`"
        )


class Survey(TypedDict):
    """The files of an interpreter that programs need, requirements of the packages included."""

    executable: str
    """The path of the interpreter."""
    stdlib: str
    """The folder of the standard library."""
    mounts: list[tuple[str, str]]
    """Pairs of a path, shared libraries included, and the path at which a program finds it."""
    packages: list[str]
    """The names by which the packages are imported."""


def survey(packages: list[str]) -> Survey:
    """Looks at the interpreter that runs this.

    Args:
        packages: Names as they are imported, or as they are installed: `"yaml"` or `"PyYAML"`.

    Raises:
        MissingPackages: It has no such package.
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
    # The loader itself says what it would load; the preloaded files are only looked at.
    trace = {"LD_TRACE_LOADED_OBJECTS": "1", "LD_PRELOAD": ":".join(map(str, modules))}
    if "LD_LIBRARY_PATH" in os.environ:  # nothing else: the loader needs none of this environment
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
    """The names to import of packages that are named one way or the other."""
    unknown = [package for package in packages if not _exists(package)]
    installed = importlib.metadata.packages_distributions() if unknown else {}  # takes a while
    found: dict[str, None] = {}
    missing = []
    for package in packages:
        names = _names_of(package, installed) if package in unknown else [package]
        found.update(dict.fromkeys(names))
        if not names:
            missing.append(package)
    if missing:
        raise MissingPackages(missing)
    return list(found)


def _names_of(package: str, installed: Mapping[str, list[str]]) -> list[str]:
    """The names to import of what is installed as `package`, or a name that differs from it in its case alone.

    Args:
        package: A name that cannot be imported.
        installed: The distributions of each name that is imported.
    """
    wanted = _normal(package)
    alike = [name for name in installed if _normal(name) == wanted]
    own = [name for name, those in installed.items() if wanted in map(_normal, those)]
    return [name for name in alike or sorted(own) if not name.startswith("_") and _exists(name)]


def _exists(name: str) -> bool:
    """Whether something of that name can be imported."""
    try:
        return name.replace(".", "").isidentifier() and importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):  # no parent; an empty part
        return False


def _files(imports: list[str]) -> list[Path]:
    """The files and folders of what is imported by these names, and of what they require."""
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
