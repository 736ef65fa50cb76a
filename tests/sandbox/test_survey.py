"""What of an interpreter's files is found to be needed."""

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from retool_env.sandbox import survey as module
from retool_env.sandbox.survey import PACKAGES_FOLDER, survey


def test_the_interpreter_and_its_library_are_there() -> None:
    found = survey([])
    assert Path(found["executable"]).samefile(getattr(sys, "_base_executable", sys.executable))
    assert found["stdlib"] == sysconfig.get_path("stdlib")
    targets = dict(found["mounts"]).values()
    assert {found["executable"], found["stdlib"]} <= set(targets)
    assert any("libc.so" in target for target in targets)
    assert not any(target.startswith(PACKAGES_FOLDER) for target in targets)


def test_everything_found_exists_and_has_one_place() -> None:
    mounts = survey(["numpy", "sympy"])["mounts"]
    assert all(os.path.exists(source) for source, _ in mounts)
    assert len({target for _, target in mounts}) == len(mounts)


def test_what_a_package_requires_comes_with_it() -> None:
    found = {target for _, target in survey(["sympy"])["mounts"]}
    assert {f"{PACKAGES_FOLDER}/sympy", f"{PACKAGES_FOLDER}/mpmath"} <= found
    assert f"{PACKAGES_FOLDER}/numpy" not in found


def test_libraries_beside_a_package_are_found() -> None:
    """numpy's wheels keep OpenBLAS in a folder of its own."""
    import numpy

    beside = Path(numpy.__file__).parents[1] / "numpy.libs"
    found = {target for _, target in survey(["numpy"])["mounts"]}
    assert (f"{PACKAGES_FOLDER}/numpy.libs" in found) == beside.exists()


def test_a_package_of_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "single.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    mounts = survey(["single"])["mounts"]
    assert (str(tmp_path / "single.py"), f"{PACKAGES_FOLDER}/single.py") in mounts


def test_an_absent_package_is_named() -> None:
    with pytest.raises(ModuleNotFoundError, match="absent"):
        survey(["numpy", "absent"])


def test_another_interpreter_can_run_it() -> None:
    """By the base interpreter alone, without this environment: it needs the standard library only."""
    command = [sys.executable, "-I", "-S", module.__file__]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["executable"] == survey([])["executable"]
    failed = subprocess.run([*command, "absent"], capture_output=True, text=True)
    assert failed.returncode == 1 and failed.stderr == "no package absent\n"
