# make setup    a virtual environment with everything, and a jail that works (safe to run again)
# make demo     a small model learns to use the interpreter, in about ten minutes; again: it goes on, or shows the result
# make test     the tests
# make lint     what the tests also check of the code's form

VENV ?= .venv
BIN := $(VENV)/bin
PYTHON ?= $(shell for p in python3 python3.12 python3.13; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 12))' 2>/dev/null && echo $$p && break; done)
LIBNL := libnl-route-3-200

.PHONY: setup jail demo test lint clean

setup: $(VENV)/.installed jail

$(VENV)/.installed: setup.cfg pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.12 or newer is needed; name it: make setup PYTHON=/path/to/python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[train,report,dev]'
	@touch $@

# The jail's binary needs one Debian package. Whatever else may be missing, `retool doctor` says.
jail: $(VENV)/.installed
	@ldconfig -p 2>/dev/null | grep -q libnl-route-3 || /sbin/ldconfig -p | grep -q libnl-route-3 || { \
		echo "installing $(LIBNL), which the sandbox needs"; \
		if [ "$$(id -u)" = 0 ]; then sudo=; else sudo="sudo -n"; fi; \
		{ $$sudo apt-get install -y -q $(LIBNL) || { $$sudo apt-get update -q && $$sudo apt-get install -y -q $(LIBNL); }; } >/dev/null 2>&1 \
		|| { echo "that did not work; run this, then make again:"; echo "    sudo apt-get update && sudo apt-get install -y $(LIBNL)"; exit 1; }; }
	@$(BIN)/retool doctor

demo: setup
	$(BIN)/python -m agents demo --preset tiny --resume $(ARGS)

test: setup lint
	$(BIN)/python -m pytest $(ARGS)

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf $(VENV) build dist *.egg-info
