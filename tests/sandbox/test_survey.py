"""The files of an interpreter that a survey finds."""

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
    """numpy's wheels keep OpenBLAS in a separate folder."""
    import numpy

    beside = Path(numpy.__file__).parents[1] / "numpy.libs"
    found = {target for _, target in survey(["numpy"])["mounts"]}
    assert (f"{PACKAGES_FOLDER}/numpy.libs" in found) == beside.exists()


def test_a_package_of_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "single.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    mounts = survey(["single"])["mounts"]
    assert (str(tmp_path / "single.py"), f"{PACKAGES_FOLDER}/single.py") in mounts


def package(folder: Path, distribution: str, *names: str) -> None:
    """Makes an installed distribution.

    Args:
        folder: The folder of packages.
        distribution: The distribution's name.
        *names: The import names of the distribution.
    """
    info = folder / f"{distribution.replace('-', '_')}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
    for name in names:
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text("")
    files = [f"{name}/__init__.py,," for name in names]
    (info / "RECORD").write_text("\n".join([*files, f"{info.name}/METADATA,,"]) + "\n")


@pytest.mark.some(3)
@pytest.mark.parametrize(
    ("named", "imports"),
    [
        (["Odd-Name"], ["odd_a", "odd_b"]),
        (["odd.name", "odd_b"], ["odd_a", "odd_b"]),
        (["odd_a"], ["odd_a"]),
        (["ODD_A"], ["odd_a"]),
        (["Plain"], ["plain"]),
        (["plain", "odd_name", "plain"], ["plain", "odd_a", "odd_b"]),
        (["json", "xml.etree"], ["json", "xml.etree"]),
    ],
)
def test_packages_are_found_by_either_name(
    named: list[str], imports: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package(tmp_path, "odd-name", "odd_a", "odd_b", "_odd_private")
    package(tmp_path, "Plain", "plain", "plain_tests")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = survey(named)
    assert found["packages"] == imports
    targets = {target for _, target in found["mounts"]}
    if "odd_a" in imports:  # the distribution's other packages come with it
        assert f"{PACKAGES_FOLDER}/_odd_private" in targets


@pytest.mark.parametrize("name", ["absent", "absent.part", "json.absent", ".", "a..b", "-"])
def test_an_absent_package_is_named(name: str) -> None:
    with pytest.raises(ModuleNotFoundError) as missing:
        survey(["numpy", name, "other_absent"])
    assert str(missing.value).startswith(f"no package {name}, other_absent for the programs: ")
    assert str(missing.value).endswith(f" -m pip install {name} other_absent`")


def test_a_missing_package_is_named_as_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_exists", lambda name: False)
    with pytest.raises(ModuleNotFoundError, match="pip install PyYAML scikit-learn Pillow numpy`"):
        survey(["yaml", "sklearn", "PIL", "numpy"])


def test_another_interpreter_can_run_it() -> None:
    """The base interpreter runs the module with only the standard library."""
    command = [sys.executable, "-I", "-S", module.__file__]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["executable"] == survey([])["executable"]
    failed = subprocess.run([*command, "absent"], capture_output=True, text=True)
    assert failed.returncode == 1 and failed.stderr.startswith("no package absent for the programs")
