# One virtual environment, .venv, made from the lock files; every target keeps it up to date.

PYTHON ?= python3
REQUIREMENTS ?= requirements/dev.lock
PYTEST_ARGS ?=
BENCH ?=
JMETER ?= jmeter
SECONDS ?= 600
REPLICAS ?= 1
CLUSTER ?=

BIN := .venv/bin
CODE := $(wildcard proxy tests bench fuzz tools)
INSTALLED := .venv/installed
LOCKED := .venv/$(notdir $(REQUIREMENTS))
BY_FILE := --dist loadfile --no-loadscope-reorder
SECOND_TRY := --reruns 1 -r fER
PIP_INSTALL := install --quiet --disable-pip-version-check

unexport PYTHONDONTWRITEBYTECODE # the tests start the compiled files a hundred times

.DEFAULT_GOAL := help
.PRECIOUS: .venv/%.lock
.PHONY: help install demo test bench check soak fuzz slow docs picture \
	cluster jmeter aiohttp mutation audit release-check lint format lock clean

help: ## list the targets
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' Makefile | expand -t 24

install: .venv/runtime.lock ## install the program alone, as .venv/bin/export-proxy
	$(BIN)/pip $(PIP_INSTALL) --no-deps --editable .

demo: .venv/runtime.lock ## run simulator, proxy and callers in one process
	@$(BIN)/python -m proxy demo

test: $(INSTALLED) ## run the tests; PYTEST_ARGS="-k pacing -x" narrows them
	$(BIN)/pytest $(COVER) --numprocesses 4 $(BY_FILE) -m "not timed" $(PYTEST_ARGS)
	$(BIN)/pytest --numprocesses 2 $(BY_FILE) -m timed $(SECOND_TRY) $(PYTEST_ARGS) || [ $$? -eq 5 ] # 5: PYTEST_ARGS left none

bench: $(INSTALLED) ## measure against the targets, a quarter of an hour; BENCH="unpaced memory" narrows it
	$(BIN)/python -m bench $(BENCH)

check: lint ## run all that a change must pass: format, lint, types, layers, spelling, tests with coverage
	$(MAKE) --no-print-directory test COVER="--cov --cov-report=term-missing:skip-covered"

soak: $(INSTALLED) ## run the program under load and random faults for SECONDS; REPLICAS=2 adds a Redis that is killed
	$(BIN)/python -m bench.soak --seconds $(SECONDS) --replicas $(REPLICAS)

cluster: $(INSTALLED) ## run two replicas on one Redis behind a load balancer; CLUSTER=--check for a test
	$(BIN)/python -m bench.cluster $(CLUSTER)

docs: $(INSTALLED) ## regenerate the tables of docs/ and the schema of the configuration
	$(BIN)/python -m tools.tables

picture: $(INSTALLED) ## run the bursts of docs/pace.svg again, and draw them
	$(BIN)/python -m tools.picture

jmeter: $(INSTALLED) ## run the JMeter plan at several numbers of threads; JMETER=path/to/jmeter
	$(BIN)/python -m bench.jmeter $(JMETER)

aiohttp: $(INSTALLED) ## run the tests of the wire with the oldest and the newest aiohttp allowed
	$(BIN)/python -m tools.aiohttp_versions

mutation: $(INSTALLED) .venv/mutation.lock ## break the rules and the pacing on purpose, and list what no test notices
	$(BIN)/python -m tools.mutation

audit: $(INSTALLED) build/release/release.lock ## look for known vulnerabilities in what the program installs
	$(BIN)/python -m tools.audit build/release/bin/pip-audit

release-check: $(INSTALLED) build/release/release.lock ## build a release, install it elsewhere and run it
	$(BIN)/python -m tools.release build/release/bin

lint: $(INSTALLED) ## run the part of check that runs no tests
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/ruff check $(CODE)
	$(BIN)/mypy $(CODE)
	$(BIN)/lint-imports
	$(BIN)/codespell

format: $(INSTALLED) ## format the code and apply the safe fixes
	$(BIN)/ruff check --fix-only $(CODE)
	$(BIN)/ruff format $(CODE)

fuzz: $(INSTALLED) .venv/fuzz.lock ## fuzz each parser of foreign bytes for a minute
	$(BIN)/python -m fuzz.run --seconds 60

slow: $(INSTALLED) ## load the proxy with slow connections for a minute, and compare the waits of other callers
	$(BIN)/python -m bench.slow --seconds 60

lock: ## resolve the newest allowed versions into requirements/
	$(PYTHON) -m venv build/lock
	build/lock/bin/pip $(PIP_INSTALL) uv
	$(call compile,runtime.lock,pyproject.toml)
	$(call compile,dev.lock,pyproject.toml --group dev --constraints requirements/runtime.lock)
	$(call compile,ci.lock,pyproject.toml --group ci --constraints requirements/dev.lock)
	$(call compile,mutation.lock,pyproject.toml --group mutation --constraints requirements/dev.lock)
	$(call compile,fuzz.lock,pyproject.toml --group fuzz --constraints requirements/dev.lock)
	$(call compile,release.lock,--group release --constraints requirements/dev.lock)

compile = build/lock/bin/uv pip compile --quiet --upgrade --universal --python-version 3.11 \
	--generate-hashes --no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" \
	--output-file requirements/$(1) $(2)

clean: ## remove the environment and everything generated
	rm -rf .venv build dist htmlcov mutants .coverage .coverage.* .hypothesis .*_cache
	find $(CODE) -name __pycache__ -prune -exec rm -rf {} +

$(INSTALLED): $(LOCKED) pyproject.toml
	$(BIN)/pip $(PIP_INSTALL) --no-deps --no-build-isolation --editable .
	@touch $@

# A lock file's namesake in .venv says when it was installed.
.venv/%.lock: requirements/%.lock
	$(PYTHON) -m venv .venv
	$(BIN)/pip $(PIP_INSTALL) --no-deps --require-hashes --requirement $<
	@touch $@

# The tools of a release have an environment of their own: none of them belongs to the program.
build/release/release.lock: requirements/release.lock
	$(PYTHON) -m venv build/release
	build/release/bin/pip $(PIP_INSTALL) --no-deps --require-hashes --requirement $<
	@touch $@

# The vendor's JavaScript SDK, which a snippet of the documentation is run with.
build/javascript/node_modules: requirements/javascript/package-lock.json
	mkdir -p build/javascript
	cp requirements/javascript/package*.json build/javascript
	npm ci --prefix build/javascript --no-audit --no-fund --silent
	@touch $@
