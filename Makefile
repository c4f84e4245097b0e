.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help quickstart quickstart-kuberay quickstart-stop test test-fast test-tasks test-extra chaos compat dist benchmark check docs docs-version clean

help: ## Show the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 20

quickstart: $(VENV)/.server ## Run a Prefect deployment as a Ray Job, on this machine (KEEP=1 leaves it up, SHOW=all shows trouble)
	@$(BIN)/python docs/examples/quickstart/run.py

quickstart-kuberay: $(VENV)/.kuberay ## Watch a RayCluster come and go with a run: real Ray, simulated Kubernetes
	@$(BIN)/python docs/examples/quickstart/kuberay.py

quickstart-stop: $(VENV)/.server ## Stop what KEEP=1 has left up
	@$(BIN)/python docs/examples/quickstart/run.py --stop

test: $(VENV)/.dev ## Run all tests but the extra ones (ARGS= is passed to pytest)
	$(BIN)/python -m pytest -n 5 --dist loadfile --no-loadscope-reorder --reruns 2 --rerun-show-tracebacks --durations 15 $(ARGS)

test-fast: $(VENV)/.dev ## Run what needs neither a Prefect server nor a Ray, in a minute
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder -m "not extra and not ray and not server" tests/unit tests/docs tests/templates $(ARGS)

test-tasks: $(VENV)/.dev ## Run the task runner's own tests, the extra ones too
	$(BIN)/python -m pytest --reruns 2 -m "extra or not extra" tests/task_runner $(ARGS)

test-extra: $(VENV)/.dev ## Run what takes long or wants a browser: the UI, result storage, dying nodes, …
	$(BIN)/python -m pytest --reruns 1 --rerun-show-tracebacks -m extra $(ARGS)

chaos: $(VENV)/.dev ## Kill everything at every stage of a run and write the table into the docs (ARGS="text")
	$(BIN)/python -m tests.resilience $(ARGS)

compat: $(VENV)/.dev ## Try the oldest and newest Ray, Prefect and Python, the built wheel in each (ARGS="name")
	$(BIN)/python -m tests.compat $(ARGS)

dist: $(VENV)/.dev ## Build the wheel and the source distribution into dist/, and check them
	rm -rf dist
	$(BIN)/python -m build --no-isolation
	$(BIN)/python -m twine check --strict dist/*

benchmark: $(VENV)/.dev ## Measure all that the page of benchmarks shows: an hour or more
	$(BIN)/python -m tests.benchmarks.start
	$(BIN)/python -m tests.benchmarks.driver
	@# Leaves out the runners that are not installed: $(BIN)/pip install -c constraints.txt prefect-ray prefect-dask
	$(BIN)/python -m tests.benchmarks.task_runner \
		--server PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE=100 \
		--server PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL=1
	$(BIN)/python -m tests.benchmarks.logs
	$(BIN)/python -m tests.benchmarks.chatty_runs
	$(BIN)/python -m tests.benchmarks.thousand_runs
	@# These two need PostgreSQL: apt-get install postgresql
	$(BIN)/python -m tests.benchmarks.many_workers
	$(BIN)/python -m tests.benchmarks.burst
	$(BIN)/python -m tests.benchmarks.memory
	$(BIN)/python -m tests.benchmarks.kuberay
	$(BIN)/python -m tests.benchmarks.adhoc

check: $(VENV)/.dev ## Run ruff, pyright and the import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports
	$(BIN)/python docs/reference/generate.py --check
	$(BIN)/python deployment-templates/work-pool/generate.py --check

docs: $(VENV)/.docs ## Write the generated pages anew, and build the site into site/; fails for a broken link
	$(BIN)/python docs/reference/generate.py
	$(BIN)/python deployment-templates/work-pool/generate.py
	$(BIN)/python -m tests.task_runner.as_threads.differences
	$(BIN)/python -m tests.benchmarks.page
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

docs-version: $(VENV)/.docs ## Commit the site to the branch gh-pages, as the version of the tag or as dev (PUSH=--push)
	@export NO_MKDOCS_2_WARNING=1 PATH="$(CURDIR)/$(BIN):$$PATH"; \
	tag=$$(git describe --tags --exact-match --match 'v*' 2>/dev/null); version=$${tag#v}; \
	case "$$tag" in \
		''|*[abc]*) mike deploy $(PUSH) dev ;; \
		*) mike deploy $(PUSH) --update-aliases "$${version%.*}" latest && \
			mike set-default $(PUSH) latest ;; \
	esac

clean: ## Remove the virtual environment and everything generated
	rm -rf $(VENV) site dist .quickstart .pytest_cache .ruff_cache .import_linter_cache

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or later is needed; '$(PYTHON)' is $$($(PYTHON) --version 2>&1). Try: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.server: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/pip install --quiet -c constraints.txt -e '.[server]'
	@touch $@

$(VENV)/.kuberay: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/pip install --quiet -c constraints.txt -e '.[server,kuberay]'
	@touch $@ $(VENV)/.server

$(VENV)/.dev: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@ $(VENV)/.server $(VENV)/.kuberay

$(VENV)/.docs: $(VENV)/.dev
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev,docs]'
	@touch $@
