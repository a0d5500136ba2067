# One way to run everything. `make` alone lists all targets. CI runs `make test` (.ci/run), which begins with `make check`.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The build of torch. docs/getting-started.md, "CPU or CUDA", says how to choose one.
TORCH ?= torch==2.13.0
PIP_TORCH_ARGS ?=
# mypy has its own environment, because it needs a newer pathspec than dbt allows.
MYPY ?= mypy==2.4.1
# A folder with a recipe catalogue and a cooking diary. It gets its own home, so that it does not replace the sample.
HISTORY ?=
ifneq ($(strip $(HISTORY)),)
LIFECYCLE_HOME ?= $(CURDIR)/.lifecycle/histories/$(notdir $(patsubst %/,%,$(strip $(HISTORY))))
export LIFECYCLE_HOME
endif
STAMP := $(VENV)/.installed
MANIFEST := dbt_project/target/manifest.json
DBT_SOURCES = $(shell find dbt_project -name target -prune -o -name logs -prune -o \( -name '*.sql' -o -name '*.yml' -o -name '*.csv' -o -name '*.md' \) -print 2>/dev/null)
# Kinds of tests that share the processes, a file at a time, each process with a PostgreSQL of its own. Long files come first, so that
# both end together. End-to-end tests have the machine to themselves.
TESTS := faults model data integration
TEST_JOBS ?= 2
PYTEST_PARALLEL = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(TEST_JOBS) --dist loadfile --no-loadscope-reorder --durations 20
K ?=
FILE ?=

INSTALLED = test -e $(STAMP) || { echo "Nothing is installed in $(VENV): run 'make setup' first." >&2; exit 1; }

.DEFAULT_GOAL := help
.PHONY: help setup demo check types unit fix coverage test up down clean bench soak

help: ## List these targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "  make %-8s %s\n", $$1, $$2 }'
	@echo; echo "  Everything else: $(BIN)/lifecycle --help"

setup: $(STAMP) $(MANIFEST) ## Make .venv and install the pinned dependencies; instant when nothing changed

demo: setup ## Run the whole graph once, from events to a served variant; HISTORY=folder uses a real cooking diary
	@$(BIN)/lifecycle demo $(if $(strip $(HISTORY)),--history "$(strip $(HISTORY))")

up: setup ## Start Dagster, MLflow, the API and the dbt docs, and keep running; Ctrl-C stops them, data is kept
	@$(BIN)/lifecycle up

down: ## Stop all services of this home; data is kept
	@$(INSTALLED) && $(BIN)/lifecycle down

clean: ## Remove .lifecycle with all its data (asks first; YES=1 does not ask)
	@$(INSTALLED) && $(BIN)/lifecycle clean $(if $(YES),--yes)

bench: setup ## Measure ratios against a floor, in one run
	@$(BIN)/python -m benchmarks.bench

soak: setup ## Kill the API and stop PostgreSQL under load for ten minutes: no acknowledged event may be lost or stored twice
	@$(BIN)/python -m benchmarks.soak $(if $(MINUTES),--minutes $(MINUTES))

check: setup ## Style, types, import contracts, dependencies and unit tests: about a minute
	@echo "== style";            $(BIN)/ruff check . && $(BIN)/ruff format --check .
	@echo "== import contracts"; $(BIN)/lint-imports
	@echo "== dependencies";     $(BIN)/deptry . && cd client && ../$(BIN)/deptry .
	@$(MAKE) --no-print-directory -j2 -Otarget types unit

# In parallel: each keeps about one core busy for most of a minute.
types: setup
	@echo "== types";            $(VENV)/mypy/bin/mypy --python-executable $(BIN)/python

unit: setup
	@echo "== tests: unit";      $(PYTEST_PARALLEL) tests/unit

fix: setup ## Fix what can be fixed automatically: imports, formatting, simple lint
	@$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

coverage: setup ## Unit and integration tests with coverage of the rooms: a table here, pages in .coverage-html/
	@$(PYTEST_PARALLEL) --cov --cov-report=term --cov-report=html tests/unit tests/integration

# K and FILE choose tests: make test K=archive, make test FILE=tests/integration/test_restore.py
ifneq ($(strip $(K)$(FILE)),)
test: setup
	@$(BIN)/python -m pytest -q --durations 10 $(if $(K),-k "$(K)") $(or $(FILE),tests)
else
test: check ## Run all checks and tests: the check, dbt, then integration, model, data, fault and end-to-end tests; K= and FILE= select
	@echo "== dbt";              rm -f $(MANIFEST)
	@$(MAKE) --no-print-directory $(MANIFEST)
	@echo "== tests: $(TESTS)"; $(PYTEST_PARALLEL) $(TESTS:%=tests/%)
	@echo "== tests: end_to_end"; $(BIN)/python -m pytest -q --durations 10 tests/end_to_end
	@echo "== everything passed"
endif

# torch is installed first and by itself: its build is the user's choice, and the constraints keep it.
$(STAMP): pyproject.toml client/pyproject.toml constraints.txt
	@command -v git >/dev/null || { echo "git is missing: install it with your system's package manager." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' 2>/dev/null || { \
	  echo "Python 3.11 or 3.12 is needed, and '$(PYTHON)' is $$($(PYTHON) --version 2>/dev/null || echo missing): install one, or name it with PYTHON=/path/to/python." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "'$(PYTHON)' can't make virtual environments: install its venv package (Debian, Ubuntu: apt install python3-venv)." >&2; exit 1; }
	@echo "Installing into $(VENV), a few minutes the first time: 1/2 $(TORCH)"
	@[ "$$($(BIN)/python --version 2>&1)" = "$$($(PYTHON) --version 2>&1)" ] || rm -rf $(VENV)
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	@$(BIN)/python -m pip install --quiet $(PIP_TORCH_ARGS) '$(TORCH)'
	@echo "2/2 everything else, at the versions of constraints.txt"
	@PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ./client --editable '.[all]' --group dev
	@$(PYTHON) -m venv $(VENV)/mypy && $(VENV)/mypy/bin/python -m pip install --quiet '$(MYPY)'
	@touch $@

# Parsed once here, because parsing in every process of Dagster made runs three times slower.
$(MANIFEST): $(STAMP) $(DBT_SOURCES)
	@$(BIN)/dbt --quiet parse --project-dir dbt_project --profiles-dir dbt_project
	@touch $@
