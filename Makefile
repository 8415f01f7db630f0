# make demo: the whole job on real data.  make test: everything that must pass.  Both work on a fresh machine with Python 3.11+.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint zoo bench clean

# Rebuilt when a dependency list changes; pip is upgraded first because Python 3.11's own has no --group.
$(VENV)/installed: pyproject.toml runtime/pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable "./runtime[cpu]" --editable . --group dev
	touch $@

demo: $(VENV)/installed
	$(BIN)/edgeport demo --out demo

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: $(VENV)/installed lint
	$(BIN)/pytest

zoo: $(VENV)/installed
	$(BIN)/python tests/bench/zoo.py --results zoo.jsonl --table docs/zoo.md

# The peers live in an environment of their own, so that they change nothing of what is measured.
.venv-peers/installed: pyproject.toml
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet --upgrade pip
	.venv-peers/bin/python -m pip install --quiet --group peers
	touch $@

bench: $(VENV)/installed .venv-peers/installed
	$(BIN)/python tests/bench/bench.py --peers .venv-peers/bin/python --folder bench --results bench/results.jsonl --table docs/bench.md

clean:
	rm -rf $(VENV) .venv-peers bench demo dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
