# Everything here needs only make and a Python of at least 3.11. What CI runs, you can run.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.built-from-lock
# `make test TESTS=tests/unit ARGS=-x`. Folders run in LANES processes, a file each at a time and with
# servers of its own: what waits first, what computes beside it and in the end. The few tests that
# measure time run afterwards, alone. Files and single tests, and what is chosen or debugged by ARGS
# (`-k stack`, `--pdb`), run in one process, where starting more costs more than it saves.
FOLDERS := tests/integration tests/contract tests/simulation tests/faults tests/unit
TESTS ?=
ARGS ?=
CHOSEN := $(or $(TESTS),$(FOLDERS))
# What waits for servers leaves the processors to other lanes.
WAITING := $(filter tests tests/integration,$(CHOSEN:/=))
LANES ?= $(if $(WAITING),4,2)
IS_ONE := $(filter %.py -k% -m% -s --pdb% --trace --lf --ff,$(CHOSEN) $(ARGS))$(findstring ::,$(CHOSEN))
SWEEP ?= quick
# One world again (SEED=), fresh ones (SEEDS=), a plan, a planted bug (PLANT=), all of them
# (PLANTS=all); small worlds only (SIZE=small). Without any: what CI runs.
SIMULATE = $(if $(SEED),--seed $(SEED)) $(if $(SEEDS),--seeds $(SEEDS)) $(if $(PLAN),--plan $(PLAN)) \
	$(if $(PLANT),--plant $(PLANT)) $(if $(PLANTS),--plants $(PLANTS)) $(if $(SIZE),--size $(SIZE))

.DEFAULT_GOAL := help
.PHONY: help demo demo-all test check docs sweep simulate bench lock clean

help:  ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' Makefile

demo: $(STAMP)  ## See PostgreSQL's audit trail arrive in Kafka, exactly once
	@echo "== demo"
	$(BIN)/python -m verity_stream.dev.demo $(ARGS)

demo-all: $(STAMP)  ## The same from six platforms (five are fakes over HTTP), and who left
	@echo "== demo of all platforms"
	PYTHONPATH=tests $(BIN)/python -m fakes.demo $(ARGS)

# Hundreds of processes start here: what they import is compiled once, whatever the shell has set.
test: export PYTHONDONTWRITEBYTECODE :=
test: $(STAMP)  ## Run all tests on a real Kafka and a real PostgreSQL
	@echo "== tests"
ifneq ($(IS_ONE),)
	$(BIN)/python -m pytest $(CHOSEN) $(ARGS)
else
	$(BIN)/python -m pytest $(CHOSEN) -m "not alone" \
		-n $(LANES) --dist loadfile $(if $(WAITING),--no-loadscope-reorder) $(ARGS)
ifneq ($(WAITING),)
	$(BIN)/python -m pytest tests/integration -m alone $(ARGS)
endif
endif

check: $(STAMP)  ## Lint, formatting, types, dead code, direction of imports, and that every test is found
	@echo "== ruff"
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@echo "== mypy"
	$(BIN)/mypy
	$(BIN)/mypy tests/unit tests/faults tests/sweep
	@echo "== vulture"
	$(BIN)/vulture
	@echo "== import-linter"
	$(BIN)/lint-imports
	@echo "== tests are found, all in one run"
	@said=$$($(BIN)/python -m pytest tests --collect-only --quiet) || { echo "$$said"; exit 1; }

docs: $(STAMP)  ## Write the parts of the documents that are made from the code
	PYTHONPATH=tests $(BIN)/python -m documents

sweep: $(STAMP)  ## Attack every guarantee: kills, zombies, outages (SWEEP=quick|full)
	@echo "== fault sweep ($(SWEEP))"
	SWEEP=$(SWEEP) PYTHONPATH=tests:tests/plugins $(BIN)/python -m sweep
ifeq ($(SWEEP),full)
	SWEEP=full $(BIN)/python -m pytest tests/integration/test_leader_change.py
endif

simulate: $(STAMP)  ## Run simulated worlds (SEED=n, SEEDS=count, PLANT=name, PLANTS=all)
	@echo "== simulator"
	PYTHONPATH=tests $(BIN)/python -W ignore -m simulation $(SIMULATE) $(ARGS)

bench: $(STAMP)  ## Measure the relay against its alternatives
	@echo "== benchmark"
	$(BIN)/python -m benchmarks.run $(ARGS)

# Two locks with hashes, of the same versions: all that make needs, and what a worker's image needs.
# The package's own extra is named instead of followed: a lock with hashes cannot name this folder.
# setuptools is locked too, so that building this package fetches nothing.
COMPILE = venv/bin/pip-compile --quiet --generate-hashes --allow-unsafe --strip-extras \
	--no-emit-index-url --no-emit-trusted-host --no-emit-find-links
lock: export CUSTOM_COMPILE_COMMAND = make lock
lock:  ## Write the requirements locks anew from pyproject.toml (for maintainers)
	@echo "== lock: the newest versions that pyproject.toml allows, with hashes"
	rm -rf build/lock && mkdir -p build/lock
	$(PYTHON) -m venv build/lock/venv
	build/lock/venv/bin/python -m pip install --quiet pip-tools
	sed '/verity-stream\[stack\]/d' pyproject.toml > build/lock/pyproject.toml
	echo 'setuptools>=77' > build/lock/build.in
	cd build/lock && $(COMPILE) --extra stack --extra test \
		--output-file requirements.lock pyproject.toml build.in
	cd build/lock && sed -nE 's/^([a-z0-9._-]+==[^ ]+).*/\1/p' requirements.lock > versions.txt \
		&& $(COMPILE) --constraint versions.txt --no-annotate \
		--output-file requirements-worker.lock pyproject.toml build.in
	mv build/lock/requirements.lock build/lock/requirements-worker.lock .
	rm -rf build/lock

clean:  ## Stop the stack in .verity, remove it, the environment and all caches
	@if [ -x $(BIN)/verity ]; then $(BIN)/verity dev down --wipe; fi
	rm -rf $(VENV) .verity build dist *.egg-info
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -prune -exec rm -rf {} +

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Verity Stream needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1)." \
			"Name another one: make PYTHON=python3.12" >&2; exit 1; }
	@echo "== building $(VENV) from requirements.lock with $$($(PYTHON) --version)"
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@
