.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help quickstart quickstart-stop test test-tasks chaos benchmark check docs clean

help: ## Show the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 18

quickstart: $(VENV)/.server ## Run a Prefect deployment as a Ray Job, on this machine (KEEP=1 leaves it up)
	@$(BIN)/python docs/examples/quickstart/run.py

quickstart-stop: $(VENV)/.server ## Stop what KEEP=1 has left up
	@$(BIN)/python docs/examples/quickstart/run.py --stop

test: $(VENV)/.dev ## Run all tests but the task runner's long ones (ARGS= is passed to pytest)
	$(BIN)/python -m pytest -n 2 --dist loadfile --reruns 2 --ignore=tests/task_runner/long $(ARGS)

test-tasks: $(VENV)/.dev ## Run the task runner's own tests, the long ones as well
	$(BIN)/python -m pytest --reruns 2 tests/task_runner $(ARGS)

chaos: $(VENV)/.dev ## Kill everything at every stage of a run and write the table into the docs (ARGS="text")
	$(BIN)/python -m tests.resilience $(ARGS)

benchmark: $(VENV)/.dev ## Measure the driver, the logs, a thousand runs and the memory: an hour or more
	$(BIN)/python -m tests.benchmarks.driver
	$(BIN)/python -m tests.benchmarks.logs
	$(BIN)/python -m tests.benchmarks.chatty_runs
	$(BIN)/python -m tests.benchmarks.thousand_runs
	$(BIN)/python -m tests.benchmarks.memory

check: $(VENV)/.dev ## Run ruff, pyright and the import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports
	$(BIN)/python docs/reference/generate.py --check

docs: $(VENV)/.dev ## Write the generated reference pages anew
	$(BIN)/python docs/reference/generate.py

clean: ## Remove the virtual environment and everything generated
	rm -rf $(VENV) .quickstart .pytest_cache .ruff_cache .import_linter_cache

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or later is needed; '$(PYTHON)' is $$($(PYTHON) --version 2>&1). Try: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.server: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/pip install --quiet -c constraints.txt -e '.[server]'
	@touch $@

$(VENV)/.dev: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@ $(VENV)/.server
