# One virtual environment, .venv, made from the lock files; every target keeps it up to date.

PYTHON ?= python3
REQUIREMENTS ?= requirements/dev.lock
PYTEST_ARGS ?=
SECONDS ?= 600

BIN := .venv/bin
CODE := $(wildcard proxy tests bench)
INSTALLED := .venv/installed
LOCKED := .venv/$(notdir $(REQUIREMENTS))
PIP_INSTALL := install --quiet --disable-pip-version-check

.DEFAULT_GOAL := help
.PRECIOUS: .venv/%.lock
.PHONY: help demo test check soak lint format lock clean

help: ## list the targets
	@sed -nE 's/^([a-z]+):.*## (.*)/  make \1\t\2/p' Makefile | expand -t 16

demo: .venv/runtime.lock ## run simulator, proxy and callers in one process
	@$(BIN)/python -m proxy demo

test: $(INSTALLED) ## run the tests; PYTEST_ARGS="-k pacing -x" narrows them
	$(BIN)/pytest $(PYTEST_ARGS)

check: lint ## everything a change must pass: format, lint, types, layers, spelling, tests with coverage
	$(MAKE) --no-print-directory test PYTEST_ARGS="--cov --cov-report=term-missing:skip-covered $(PYTEST_ARGS)"

soak: $(INSTALLED) ## run the program under load and random faults for SECONDS, 600 by default
	$(BIN)/python -m bench.soak --seconds $(SECONDS)

lint: $(INSTALLED) ## the part of check that runs no tests
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/ruff check $(CODE)
	$(BIN)/mypy $(CODE)
	$(BIN)/lint-imports
	$(BIN)/codespell

format: $(INSTALLED) ## format the code and apply the safe fixes
	$(BIN)/ruff check --fix-only $(CODE)
	$(BIN)/ruff format $(CODE)

lock: ## resolve the newest allowed versions into requirements/
	$(PYTHON) -m venv build/lock
	build/lock/bin/pip $(PIP_INSTALL) uv
	$(call compile,runtime.lock)
	$(call compile,dev.lock,--group dev --constraints requirements/runtime.lock)
	$(call compile,ci.lock,--group ci --constraints requirements/dev.lock)

compile = build/lock/bin/uv pip compile --quiet --upgrade --universal --python-version 3.11 \
	--generate-hashes --no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" \
	--output-file requirements/$(1) $(2) pyproject.toml

clean: ## remove the environment and everything generated
	rm -rf .venv build dist htmlcov .coverage .coverage.* .hypothesis .*_cache
	find $(CODE) -name __pycache__ -prune -exec rm -rf {} +

$(INSTALLED): $(LOCKED) pyproject.toml
	$(BIN)/pip $(PIP_INSTALL) --no-deps --no-build-isolation --editable .
	@touch $@

# A lock file's namesake in .venv says when it was installed.
.venv/%.lock: requirements/%.lock
	$(PYTHON) -m venv .venv
	$(BIN)/pip $(PIP_INSTALL) --no-deps --require-hashes --requirement $<
	@touch $@
