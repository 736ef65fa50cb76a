import importlib.metadata
from pathlib import Path

import numpy
import yaml

import retool_env
from retool_env.provenance import PACKAGES, versions

ROOT = Path(retool_env.__file__).parents[1]


def test_the_version_is_that_of_the_installed_package_and_of_the_citation():
    assert retool_env.__version__ == importlib.metadata.version("retool-env")
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == retool_env.__version__


def test_versions_name_what_is_installed_and_what_is_not(monkeypatch):
    found = versions()
    assert found["numpy"] == numpy.__version__ and set(PACKAGES) < set(found)
    monkeypatch.setattr("retool_env.provenance.PACKAGES", ("no-such-package",))
    assert versions()["no-such-package"] == "not installed"
