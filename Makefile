# Everything a person or a machine does with this repository. `make demo` on a fresh machine needs nothing else.

PYTHON ?= python3
PORT ?= 8000
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.stamp
REQUIREMENTS := requirements.txt requirements-train.txt requirements-dev.txt
CODE := platform datasets_app models_app finetune_app evaluation_app inference_app runner
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --progress-bar off

.PHONY: setup demo up test test-fast lint bench chaos clean
.DEFAULT_GOAL := help
.SILENT:

.PHONY: help
help: ## this list
	awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## a virtual environment with everything in it; quick when nothing changed

$(STAMP): $(REQUIREMENTS) pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	echo "setup 1/5: virtual environment in $(VENV)"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	echo "setup 2/5: torch (the largest part, a few minutes on a slow line)"
	$(PIP) torch==2.13.0
	echo "setup 3/5: web, queue, training and serving"
	$(PIP) -r requirements.txt -r requirements-train.txt
	echo "setup 4/5: tests and linters"
	$(PIP) -r requirements-dev.txt
	echo "setup 5/5: Clavier itself"
	$(PIP) --no-build-isolation --no-deps -e .
	touch $(STAMP)

demo: setup ## the main job on real input: upload, pretrain, tune, judge, deploy, ask
	$(BIN)/python manage.py demo

up: setup ## the platform on http://127.0.0.1:$(PORT)
	exec $(BIN)/python manage.py up --port $(PORT)

test: setup ## every test
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --reruns 1

test-fast: setup ## the tests without the slow ones
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow and not browser and not postgres and not docker"

lint: setup ## style, types, the dependency rule, migrations, templates
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy $(CODE)
	$(BIN)/lint-imports
	$(BIN)/python manage.py makemigrations --check --dry-run
	$(BIN)/djlint templates --lint --quiet

bench: setup ## one benchmark: make bench NAME=front
	test -f "bench/$(NAME).py" || { echo "usage: make bench NAME=..., one of:" $(basename $(notdir $(wildcard bench/*.py))); exit 2; }
	$(BIN)/python -m bench.$(NAME)

chaos: setup ## kill everything at random, judge from outside: make chaos N=200
	$(BIN)/python -m tests.chaos --faults $(or $(N),40) --jobs 50
	$(BIN)/python -m tests.chaos --faults $(or $(N),40) --jobs 50 --executor docker_engine --database postgresql

clean: ## remove what was built; the data in var/ stays
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache test-results *.egg-info
	find $(CODE) tests -name __pycache__ -prune -exec rm -rf {} +
