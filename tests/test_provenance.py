import numpy

from retool_env.provenance import PACKAGES, versions


def test_versions_name_what_is_installed_and_what_is_not(monkeypatch):
    found = versions()
    assert found["numpy"] == numpy.__version__ and set(PACKAGES) < set(found)
    monkeypatch.setattr("retool_env.provenance.PACKAGES", ("no-such-package",))
    assert versions()["no-such-package"] == "not installed"
