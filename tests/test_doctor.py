"""The doctor's findings, on this machine and on machines that lack a part."""

import configparser
import importlib.metadata
import re
import resource
import sys
from pathlib import Path

import pytest
from helpers import ROOT

from retool_env import doctor
from retool_env.doctor import EXTRAS, Finding, Status, examine
from retool_env.sandbox import Execution, NsjailSandbox, Outcome, nsjail


def test_all_that_programs_need_is_here() -> None:
    found = {finding.subject: finding for finding in examine()}
    for subject in ("machine", "sandbox", "limits", "packages", "train"):
        assert found[subject].status is Status.OK, found[subject]
    assert re.search(r"ready \d+ ms .* \d+\.\d ms for a small program", found["sandbox"].detail)
    assert set(EXTRAS) < set(found)
    assert not [finding for finding in found.values() if finding.status is Status.MISSING]


def test_a_finding_is_printed_in_columns() -> None:
    finding = Finding(Status.NOTE, "GPU", "none", "buy one\nor two")
    assert str(finding) == (
        "note    GPU         none\n                    buy one\n                    or two"
    )


def test_a_jail_that_cannot_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nsjail, "find_binary", lambda _: "/bin/false")
    (finding,) = doctor.check_sandbox()
    assert finding.status is Status.MISSING and "retool serve" in finding.mend


def test_limits_that_do_not_hold_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    run = NsjailSandbox.run

    def careless(self: NsjailSandbox, code: str, *limits: object, **_: object) -> Execution:
        return Execution(Outcome.OK, "") if "socket" in code else run(self, code, *limits)

    monkeypatch.setattr(NsjailSandbox, "run", careless)
    finding = list(doctor.check_sandbox())[-1]
    assert finding.status is Status.MISSING and finding.detail == "not held: network: ok "


def test_packages_that_programs_cannot_import(monkeypatch: pytest.MonkeyPatch) -> None:
    run = NsjailSandbox.run

    def without(self: NsjailSandbox, code: str, *limits: object, **_: object) -> Execution:
        if code.startswith("import numpy, "):
            return Execution(Outcome.RUNTIME_ERROR, "", "ImportError: libfoo.so")
        return run(self, code, *limits)

    monkeypatch.setattr(NsjailSandbox, "run", without)
    found = {finding.subject: finding for finding in doctor.check_sandbox()}
    assert found["programs"].status is Status.MISSING and "libfoo.so" in found["programs"].detail
    assert "numpy sympy mpmath" in found["programs"].mend


def test_few_open_files() -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (456, limits[1]))
    try:
        finding = doctor.check_open_files()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert finding.status is Status.NOTE and "50 programs at once" in finding.detail
    assert finding.mend.startswith("ulimit -n ")


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("always [madvise] never", Status.OK),
        ("[always] madvise never", Status.OK),
        ("always madvise [never]", Status.NOTE),
        (None, Status.NOTE),
    ],
)
def test_huge_pages(
    text: str | None, status: Status, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "enabled"
    if text is not None:
        path.write_text(text)
    monkeypatch.setattr(doctor, "HUGE_PAGES", path)
    assert doctor.check_huge_pages().status is status


def test_a_gpu_and_a_driver_without_one(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    properties = type("Properties", (), {"name": "NVIDIA H200", "total_memory": 139 << 30})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    assert doctor.check_gpu().detail.startswith(
        "NVIDIA H200 (139 GiB), NVIDIA H200 (139 GiB), CUDA "
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(doctor.shutil, "which", lambda _: "/usr/bin/nvidia-smi")
    assert "CUDA_VISIBLE_DEVICES" in doctor.check_gpu().mend
    monkeypatch.setattr(doctor.shutil, "which", lambda _: None)
    assert doctor.check_gpu().detail.startswith("none")
    monkeypatch.setitem(sys.modules, "torch", None)
    assert "not installed" in doctor.check_gpu().detail
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda _: True)
    assert "cannot be loaded" in doctor.check_gpu().detail


def test_a_package_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name in ("sympy", "trl"):
            raise importlib.metadata.PackageNotFoundError(name)
        return "1"

    monkeypatch.setattr(importlib.metadata, "version", version)
    found = {finding.subject: finding for finding in doctor.check_packages()}
    assert found["packages"].status is Status.MISSING
    assert "sympy missing" in found["packages"].detail
    assert found["train"].detail == "not installed: trl"
    assert found["train"].mend == "pip install 'retool-env[train]'"


def test_the_extras_are_those_that_can_be_installed() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    declared = {
        extra: {re.split(r"[^\w.-]", line)[0] for line in text.split("\n") if line.strip()}
        for extra, text in config["options.extras_require"].items()
    }
    for extra, names in EXTRAS.items():
        assert set(names) <= declared[extra], extra
