# Everything a person does with this repository. On a fresh machine: make run, make test.
PYTHON ?= python3
BIN := .venv/bin
PLUGINS := plugins/prunekit-deepid2plus plugins/prunekit-images

.PHONY: run test quick lint types docs bench check clean

run: .venv/run  ## train, prune and re-train on the embedded faces; prints the table of stages
	$(BIN)/prunekit run --criterion correlation

test: .venv/dev  ## all tests, the slow ones too
	$(BIN)/pytest

quick: .venv/dev  ## after each edit, under a minute: no whole runs, other processes, plugin packages or slow tests
	PYTHONHASHSEED=0 OMP_NUM_THREADS=1 $(BIN)/pytest -q -n 2 -m "not slow and not system and not thorough" tests

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/dev
	$(BIN)/mypy

docs: .venv/dev  ## makes the generated pages, then checks links, names, hooks and every example
	$(BIN)/python docs/make_reference.py
	$(BIN)/python docs/make_architecture.py
	$(BIN)/pytest tests/docs

bench: .venv/dev
	$(BIN)/python benchmarks/run.py

check: lint types test

clean:
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/run: .venv/bin/python pyproject.toml $(PLUGINS:%=%/pyproject.toml) constraints.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt -e . $(PLUGINS:%=-e %)
	@touch $@

.venv/dev: .venv/run
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	@touch $@
