# make demo | test | test-all | precommit | check | format | mutants | fuzz | clean.   Everything lives in .venv; nothing else is installed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test test-all precommit check format mutants fuzz clean

demo: $(STAMP)
	$(BIN)/hpc-mlp demo

# Two tests at a time, apart from those that measure time, take every core, or share the machine's
# one cluster or browser.
ALONE := alone or slurm or browser or gpu
QUICK := not slow and not slurm and not browser and not gpu
PAIRS := --numprocesses 2 --dist worksteal

test: $(STAMP)-dev
	$(BIN)/python -m pytest -m "$(QUICK) and not alone" $(PAIRS)
	$(BIN)/python -m pytest -m "$(QUICK) and alone"

# What CI runs: also the slow tests, a real Slurm and a real browser.
test-all: $(STAMP)-dev
	$(BIN)/python -m pytest -m "not ($(ALONE))" $(PAIRS)
	$(BIN)/python -m pytest -m "$(ALONE)"

# What is quick of `make check`: before each commit.
precommit: $(STAMP)-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python tools/readme.py --check

check: precommit
	$(BIN)/python -m pytest -m "not slow or docs" tests/test_docs.py

format: $(STAMP)-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# What no quick test notices of small changes to the core modules, one at a time (an hour and more).
mutants: $(STAMP)-dev
	nice $(BIN)/python tools/mutants.py

# Every kind of file that is read, mutated, for longer than CI does: make fuzz FUZZ=20000
FUZZ ?= 5000
fuzz: $(STAMP)-dev
	nice $(BIN)/python tests/fuzz.py --count $(FUZZ)

$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable .
	touch $@

$(STAMP)-dev: $(STAMP)
	$(BIN)/pip install --quiet --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) demo build dist .mutants *.egg-info
