# Everything runs in an environment of its own, made on first use in $(VENV) and kept until its inputs change.
# Another place for it: make test VENV=/path. Another Python: make test PYTHON=python3.12.

VENV ?= .venv
PYTHON ?= python3
BIN := $(abspath $(VENV))/bin

.PHONY: help demo test lint format cards env clean

help:
	@echo "make demo    train a small classifier on the embedded image set, evaluate it, draw its predictions"
	@echo "make test    the whole test suite (one file: make test TESTS=tests/scan)"
	@echo "make lint    formatting, code style, and that dependence runs one way"
	@echo "make format  rewrite the files as 'make lint' wants them"
	@echo "make cards   write tables, cards, NOTICE and configs from the declarations of families, results and recipes"
	@echo "make env     only the environment, in $(VENV)"
	@echo "make clean   remove caches and build outputs, not the environment"

env:
	@$(PYTHON) tools/environment.py $(VENV)

demo: env
	$(BIN)/python tools/demo.py

# A test process per core, and one thread in each: more would fight over the cores.
TESTS ?= tests
test: env
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest --numprocesses auto --dist worksteal $(TESTS)

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache

format: env
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

cards: env
	$(BIN)/python tools/model_tables.py

clean:
	rm -rf build dist .pytest_cache .ruff_cache .import_linter_cache *.egg-info kernels/*.egg-info
	find vssm kernels tests tools -name __pycache__ -type d -prune -exec rm -rf {} +
