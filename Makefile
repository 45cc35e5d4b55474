# Every target that runs something sets up .venv first; that takes no time when the lock has not changed.
.DEFAULT_GOAL := help
.PHONY: help setup demo lab test unit lint format notebooks render bench lock clean

# make setup PYTHON=/path/to/python      chooses the Python that .venv is made from
PYTHON ?= $(firstword $(foreach name,python3 python3.13 python3.12 python3.11,$(shell command -v $(name) 2>/dev/null)))
BIN := .venv/bin

# Threads that wait must not spin: two processes on two cores would slow each other down tenfold.
export OMP_WAIT_POLICY ?= PASSIVE

help: ## this list
	@echo "nbkit: make TARGET"
	@echo
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1|\2/p' Makefile | awk -F'|' '{ printf "%-18s%s\n", $$1, $$2 }'
	@echo
	@echo "Each target sets up .venv when needed (Python 3.11+, 4 GiB of disk)."

setup: ## .venv with everything, from the lock
	@test -n "$(PYTHON)" || { echo "setup: no python3 on PATH; nbkit needs Python 3.11 or newer (Debian, Ubuntu: apt install python3 python3-venv)" >&2; exit 1; }
	@$(PYTHON) tools/setup.py

demo: setup ## the four notebooks, end to end, on the embedded model
	@$(BIN)/nbkit demo

lab: setup ## JupyterLab on the notebooks
	@NBKIT_RUNS=$(CURDIR)/runs $(BIN)/jupyter lab notebooks

# Simply expanded, so that the setup counts: the time printed at the end is what a person waited.
STARTED := $(shell date +%s)
test: setup ## lint, every test and the notebooks in smoke mode; what CI runs
	@$(BIN)/python -m tools.check --since $(STARTED)

unit: setup ## the unit tests alone: no box, no browser, no training
	@$(BIN)/python -m tools.check unit

lint: setup ## ruff and mypy
	@$(BIN)/python -m tools.check lint

format: setup ## let ruff rewrite the files
	@$(BIN)/ruff check --fix-only --quiet . && $(BIN)/ruff format .

notebooks: setup ## the notebooks in smoke mode, as nbval runs them
	@$(BIN)/python -m tools.notebooks smoke

render: setup ## run the notebooks in full and store their outputs
	@$(BIN)/python -m tools.notebooks badges
	@$(BIN)/python -m tools.notebooks render

bench: setup ## nbkit against its peers: BENCH=startup runs one, else they are listed
	@$(BIN)/python -m bench $(BENCH)

lock: ## write requirements/lock.txt anew; UPGRADE=1 or UPGRADE=name moves pins
	@$(PYTHON) tools/setup.py lock $(UPGRADE)

clean: ## remove .venv and everything built
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
