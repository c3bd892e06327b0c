# Both commands make their own environment in .venv; PYTHON chooses the interpreter (3.11 or newer).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
QUICKSTART := runs/quickstart

.PHONY: quickstart test test-slow lint clean

quickstart: $(VENV)/installed
	$(BIN)/python -m experiments.train --config=configs/quickstart.py --workdir=$(QUICKSTART)
	$(BIN)/python -m experiments.report --workdir=$(QUICKSTART)

test: $(VENV)/installed-test lint
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-slow: $(VENV)/installed-slow
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m slow

lint: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(VENV)/installed: setup.py
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.11") if sys.version_info < (3, 11) else 0'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	touch $@

$(VENV)/installed-test: setup.py
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.11") if sys.version_info < (3, 11) else 0'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test,hf]'
	touch $@ $(VENV)/installed

$(VENV)/installed-slow: $(VENV)/installed-test
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test,hf,parity,tpu]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
