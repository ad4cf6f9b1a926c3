# Everything runs in a virtual environment of its own, which is made on first use.
#
#   make demo                        train a small language model under four memory budgets
#   make test                        the tests
#   make check                       what CI runs: format, lint, types, tests and doctests
#   make test TORCH='torch==2.13.0'  with another version of torch (VENV=... keeps the environments apart)

PYTHON ?= python3
TORCH ?= torch>=2.13,<2.15
# Of the package: fake-cuda as well where networks are to be lowered for a GPU that is not there.
EXTRAS ?= dev
VENV ?= .venv
# The tests run in so many processes.
WORKERS ?= 2
PYTEST_ARGS ?=

RUN := $(VENV)/bin/python
# Installed once for each state of pyproject.toml, each requirement of torch and each choice of extras.
STAMP := $(VENV)/.installed-$(shell printf '%s' '$(TORCH) $(EXTRAS)' | cksum | cut -d ' ' -f 1)

.DEFAULT_GOAL := help
.PHONY: help setup demo test check format bench bench-full clean
.DELETE_ON_ERROR:

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1 /p' $(MAKEFILE_LIST) | while read -r name text; do printf '%-10s %s\n' "$$name" "$$text"; done

setup: $(STAMP)  ## make the environment and install graphremat and its tools into it

$(STAMP): pyproject.toml
	@'$(PYTHON)' -c 'import sys; sys.exit(sys.version_info < (3, 10) and "graphremat needs Python 3.10 or newer; this is " + sys.version.split()[0] + ": say make PYTHON=python3.11, for example")'
	'$(PYTHON)' -m venv '$(VENV)'
	@rm -f '$(VENV)'/.installed-*
	$(RUN) -m pip install --quiet --disable-pip-version-check '$(TORCH)' --editable '.[$(EXTRAS)]'
	@touch '$@'

demo: setup  ## train a small language model at the fastest plan and under three tighter budgets
	$(RUN) -m graphremat demo

test: setup  ## run the tests and the doctests
	$(RUN) -m pytest -n $(WORKERS) --dist worksteal $(PYTEST_ARGS)

check: setup  ## what CI runs: format, lint, types, tests and doctests
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(RUN) -m mypy
	$(RUN) -m pytest -n $(WORKERS) --dist worksteal $(PYTEST_ARGS)

format: setup  ## format the code and mend what the linter can mend
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

bench: setup  ## who is fastest at the same peak: few contestants on two small networks, some minutes
	$(RUN) -m bench.contest --quick

bench-full: setup  ## the same of everybody on everything: a day, goes on where it was cut; and the page of it
	$(RUN) -m bench.contest
	$(RUN) -m bench.report

clean:  ## remove the environment and what tools left behind
	rm -rf '$(VENV)' build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
