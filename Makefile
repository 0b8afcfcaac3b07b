# Each target makes what it needs first; a second call does only what is left to do.
PYTHON ?= python3
BIN := .venv/bin
PIP := -m pip --disable-pip-version-check

.PHONY: setup demo test lint lock clean

setup: .venv/ready  ## Prepare .venv from requirements.lock

.venv/ready: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or later is needed: make PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	@echo "Preparing .venv (once; about 1 GB)"
	$(PYTHON) -m venv .venv
	@# torch first and alone: beside an installed CPU build nothing asks for CUDA packages any more
	$(BIN)/python $(PIP) install --quiet "$$(grep '^torch==' requirements.lock)"
	$(BIN)/python $(PIP) install --quiet --requirement requirements.lock
	$(BIN)/python $(PIP) install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

demo: setup  ## Four hospitals pretrain, fine-tune and evaluate one model; ends with a report
	$(BIN)/fedretina simulate experiment=demo

test: setup  ## All tests, file by file: what the tests of a file share is made once
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder

lint: setup  ## Style, types, and that dependencies point one way
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

lock:  ## Resolve pyproject.toml anew into requirements.lock
	rm -rf .venv-lock && $(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python $(PIP) install --quiet "$$(grep -o 'torch==[0-9.]*' pyproject.toml | head -1)"
	.venv-lock/bin/python $(PIP) install --quiet 'setuptools>=77' --editable '.[dev]'
	.venv-lock/bin/python $(PIP) freeze --all --exclude-editable --exclude pip \
	  | sed 's/+cpu$$//' | awk '/^torch==/ {print; next} {rest = rest $$0 "\n"} END {printf "%s", rest}' > requirements.lock
	rm -rf .venv-lock

clean:  ## Remove what was built, but not runs/
	rm -rf .venv .venv-lock .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
