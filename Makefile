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

PYTHON_SOURCES := engine lab library module_utils plugins tests scripts molecule
SHELL_SOURCES := engine/bin/*.sh engine/v1/coordinate scripts/setup .ci/run

.PHONY: help
help: ## List the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

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
	@if [ -x $(VENV)/bin/lab ]; then lab down && lab down --name molecule; fi

.PHONY: demo
demo: artifact ## Lab, stage 1 under a live load, gate, a degraded release, rollback
	@python scripts/demo.py

.PHONY: test
test: test-unit test-lab ## Every test

.PHONY: test-unit
test-unit: $(VENV)/.ready ## The fast tests: no lab, under two minutes
	@pytest -m "not lab and not full" -q

.PHONY: test-full
test-full: $(VENV)/.ready ## The slow tests: full counts of what make test-unit samples
	@pytest -m full -q

.PHONY: test-lab
test-lab: artifact ## The tests on real hosts: the lab itself, and the molecule scenarios
	@pytest -m lab -q
	@scripts/molecule

.PHONY: lint
lint: $(VENV)/.ready ## Types, style and safety of everything
	@ruff check . && ruff format --check .
	@mypy $(PYTHON_SOURCES)
	@yamllint --strict .
	@shellcheck -x $(SHELL_SOURCES)
	@ansible-lint

.PHONY: bench
bench: artifact ## Measure the engine on this machine against a limit in the same run
	@python engine/bench/engine.py --output build/bench

.PHONY: bench-judge
bench-judge: $(VENV)/.ready ## Show by simulation how right the judge is, and how fast (minutes)
	@python engine/bench/judge.py --output build/bench

.PHONY: clean
clean: lab-down ## Remove what was built, installed here, or started
	@rm -rf build $(VENV)
