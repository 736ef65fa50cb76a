"""The environment variables of child processes hold no secrets."""

from retool_env.children import child_environment


def test_a_child_inherits_paths_but_no_tokens(monkeypatch):
    monkeypatch.setenv("PATH", "/bin")
    monkeypatch.setenv("PYTHONPATH", "/lib")
    monkeypatch.setenv("OPENAI_API_KEY", "hush")
    monkeypatch.setenv("RETOOL_SANDBOX_TOKEN", "hush")
    plain = child_environment(PATH="/usr/bin", MORE="1")
    assert (plain["PATH"], plain["MORE"]) == ("/usr/bin", "1") and "PYTHONPATH" not in plain
    python = child_environment(python=True)
    assert (python["PATH"], python["PYTHONPATH"]) == ("/bin", "/lib")
    assert "hush" not in [*plain.values(), *python.values()]
