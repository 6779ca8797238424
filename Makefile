# `make run` and `make test` set everything up by themselves; see README.md.
SHELL := /bin/bash
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do command -v $$p >/dev/null 2>&1 && $$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
export PYTHONUNBUFFERED = 1

.PHONY: extras run tour test test-slow ui chat table prune screenshots bench lint format lock setup setup-dev weights
.DEFAULT_GOAL := run

run: weights ## the whole graph on this machine's profile; prints the comparison table
	@exec $(BIN)/python -m assets.run

tour: export FEATHERWEIGHT_PROFILE = tour
tour: run ## the next thing to run: profile tour with searched learning rates; ten minutes or some more

test: setup-dev weights ## every test but the slow ones
	@$(BIN)/python -m pytest -n 2 --dist worksteal

test-slow: setup-dev weights ## tests that kill processes and run whole graphs; up to an hour
	@$(BIN)/python -m pytest -m slow --timeout=3600

ui: setup ## Dagster's webserver and daemon on 127.0.0.1:3000 (PORT=... for another)
	@exec $(BIN)/python -m assets.ui

chat: weights ## answers of the base and of your cells side by side on 127.0.0.1:3100 (PORT=... for another; CELLS="MODEL/METHOD ...")
	@exec $(BIN)/featherweight chat --page --port $(or $(PORT),3100) $(CELLS)

table: setup ## the published comparison
	@$(BIN)/featherweight table

prune: setup ## list what is no longer needed, and old runs of Dagster; YES=1 removes it
	@$(BIN)/featherweight prune $(if $(YES),--yes)
	@$(BIN)/python -m assets.history $(if $(YES),--yes)

screenshots: setup-dev ## README's table and docs/images/*.png: the graph, a cell, the report (needs Chromium and a finished `make run`)
	@$(BIN)/python -m tests.screenshots

bench: setup-dev weights ## all measurements; one JSON object a line
	@$(BIN)/python -m benchmarks

extras: setup ## optional packages: make extras E=ray (or E=ray,tune); the locked versions and the checkout stay
	@test -n "$(E)" || { echo "make: which extra? pyproject.toml has them under optional-dependencies; for instance: make extras E=ray" >&2; exit 2; }
	@for extra in $$(echo "$(E)" | tr , ' '); do \
		sed -n '/^\[project.optional-dependencies\]/,/^\[tool/p' pyproject.toml | grep -q "^$$extra = " \
		|| { echo "make: pyproject.toml has no extra '$$extra'; expected E= with names under optional-dependencies, such as ray" >&2; exit 2; }; \
	done
	@$(PIP) install --constraint requirements.lock --constraint requirements-dev.lock --no-build-isolation --editable '.[$(E)]'

lint: setup-dev ## formatting, ruff, import layers, complexity of functions (tests/complexity.py), types
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/lint-imports
	@$(BIN)/python -m tests.complexity
	@$(BIN)/pyright

format: setup-dev
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

setup: .venv/runtime-stamp
setup-dev: .venv/dev-stamp

weights: setup
	@$(BIN)/featherweight fetch smollm2-135m >/dev/null

.venv/bin/python:
	@test -n "$(PYTHON)" || { echo "make: no Python 3.11 to 3.13 found: install one, or say where it is: make PYTHON=/path/to/python3.12" >&2; exit 2; }
	@echo "setting up .venv with $(PYTHON) (some minutes, once)" >&2
	@$(PYTHON) -m venv .venv

.venv/runtime-stamp: requirements.lock requirements-converter.lock pyproject.toml | .venv/bin/python
	@echo "installing the locked packages (a few minutes)" >&2
	@$(PIP) install -r requirements.lock
# llama.cpp's converter has its own folder, since it brings its own gguf
	@rm -rf .venv/converter
	@$(PIP) install --no-deps --require-hashes --target .venv/converter -r requirements-converter.lock
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

.venv/dev-stamp: requirements-dev.lock .venv/runtime-stamp
	@$(PIP) install -r requirements-dev.lock
	@touch $@

lock: ## resolve pyproject.toml again into requirements*.lock, in a separate environment
	@rm -rf .venv-lock && $(PYTHON) -m venv .venv-lock
# Keeps the locked torch, since another release changes README's digits
	@.venv-lock/bin/python -m pip install --quiet setuptools '.' "$$(grep '^torch==' requirements.lock)"
	@.venv-lock/bin/python -m pip freeze --all --exclude pip --exclude featherweight | sed 's/+cpu$$//' > requirements.lock
	@.venv-lock/bin/python -m pip install --quiet '.[dev]'
	@.venv-lock/bin/python -m pip freeze --all --exclude pip --exclude featherweight | sed 's/+cpu$$//' | grep -vxFf requirements.lock > requirements-dev.lock
	@rm -rf .venv-lock build
