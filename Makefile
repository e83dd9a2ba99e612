# `make demo` and `make test` do everything, starting from Python 3.11 or newer.
#
# On Linux without a GPU, the small build of PyTorch saves gigabytes:
#   make venv PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"

PYTHON ?= python3
PIP_ARGS ?=
FAULTS ?= tests/faults
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help venv demo test test-slow faults lint audit ci clean

help:
	@echo 'make demo       the whole path in under five minutes: pretrain, fine-tune, try it'
	@echo 'make test       every test that takes seconds'
	@echo 'make test-slow  those that take minutes'
	@echo 'make faults     runs are killed, starved and lied to, an hour; see benchmarks/RELIABILITY.md'
	@echo 'make lint       ruff and mypy'
	@echo 'make audit      known vulnerabilities (pip-audit, where installed) and secrets'
	@echo 'make ci         lint, audit, test and test-slow'
	@echo 'make venv       only the environment, in .venv'
	@echo 'make clean      remove caches and builds'

venv: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo 'mlm needs Python 3.11 or newer, and $(PYTHON) is older or missing;' \
	        'name another one, as in: make PYTHON=python3.12'; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install $(PIP_ARGS) -c constraints.txt -e '.[dev,hf,onnx]'
	@touch $@

demo: venv
	$(BIN)/mlm demo

test: venv
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal -m 'not slow'

test-slow: venv
	$(BIN)/python -m pytest -m slow

faults: venv
	MLM_FAULTS=full $(BIN)/python -m pytest $(FAULTS) -s

lint: venv
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

audit: venv
	$(BIN)/python .ci/audit

ci: lint audit test test-slow

clean:
	rm -rf build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -path ./.venv -prune -o -name __pycache__ -type d -exec rm -rf {} +
