# Every target sets up what it needs first. `make help` lists them.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3.11
VENV := .venv
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export ANSIBLE_CONFIG := $(CURDIR)/ansible.cfg
export PIP_DISABLE_PIP_VERSION_CHECK := 1

PYTHON_SOURCES := engine docs/examples lab library module_utils plugins tests scripts molecule
SHELL_SOURCES := engine/bin/*.sh docs/examples/*.sh engine/v1/coordinate scripts/setup .ci/run

.PHONY: help
help: ## List the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(VENV)/.ready: requirements.lock pyproject.toml engine/pyproject.toml scripts/setup
	@scripts/setup $(PYTHON) $(VENV)
	@touch $@

.PHONY: setup
setup: $(VENV)/.ready ## Create .venv/ and install what is missing

.PHONY: artifact
artifact: $(VENV)/.ready ## Build the release that is deployed, and a degraded one for the lab
	@python engine/build_release.py --output build/artifacts
	@python engine/build_release.py --output build/artifacts --fault lose:80

.PHONY: lab-up
lab-up: $(VENV)/.ready ## Start the lab: three real systemd hosts on this machine
	@lab up --inventory inventories/lab

.PHONY: lab-down
lab-down: ## Remove every lab that these targets start
	@if [ -x $(VENV)/bin/lab ]; then for name in demo molecule bench soak; do lab down --name $$name; done; fi

.PHONY: demo
demo: artifact ## Lab, stage 1 under a live load, gate, a degraded release, rollback
	@python scripts/demo.py

.PHONY: test
test: test-unit test-processes test-lab ## Every test

.PHONY: test-unit
test-unit: $(VENV)/.ready ## The fast tests: no daemon, no lab, under two minutes
	@pytest -m "not (processes or lab or full)" -q

.PHONY: test-processes
test-processes: $(VENV)/.ready ## The tests with daemons on this machine, killed and stopped
	@pytest -m "processes and not full" -q

.PHONY: test-full
test-full: artifact ## The slow tests: full counts of what make test-unit samples
	@pytest -m full -q

.PHONY: fault-test
fault-test: $(VENV)/.ready ## The fault campaign alone: COUNT=10000 SEED=1
	@python -m engine.tests.engine.campaign --count $(or $(COUNT),10000) --seed $(or $(SEED),1)

.PHONY: test-lab
test-lab: artifact ## The tests on real hosts: the lab itself, and the molecule scenarios
	@pytest -m "lab and not full" -q
	@scripts/molecule

.PHONY: lint
lint: $(VENV)/.ready ## Types, style and safety of everything
	@ruff check . && ruff format --check .
	@mypy $(PYTHON_SOURCES)
	@yamllint --strict .
	@shellcheck -x $(SHELL_SOURCES)
	@ansible-lint

.PHONY: bench
bench: artifact ## Measure the deployed engine against a limit and its peers
	@python -m engine.bench --output build/bench

SOAK_MINUTES ?= 60

.PHONY: soak
soak: artifact ## Coordinate each second for SOAK_MINUTES while processes are killed
	@python -m engine.bench.soak --minutes $(SOAK_MINUTES) --output build/soak.json

.PHONY: bench-router
bench-router: $(VENV)/.ready ## Measure the router against its bars
	@python -m engine.bench.router --output build/bench

.PHONY: bench-judge
bench-judge: $(VENV)/.ready ## Show by simulation how right the judge is, and how fast (minutes)
	@python engine/bench/judge.py --output build/bench

.PHONY: clean
clean: lab-down ## Remove what was built, installed here, or started
	@rm -rf build $(VENV)
