# Two commands for a newcomer: `make quickstart` and `make test`. Each sets up what it needs, once.
PYTHON ?= python3.11
VENV := .venv
# more processes for the tests, where there are cores for them: 2 took 18 minutes instead of 30, on 2 cores not always well
TEST_WORKERS ?= 0
READY := $(VENV)/.ready

.PHONY: help setup quickstart test lint clean cluster-up cluster-down
help:
	@echo "make quickstart   a whole study with the bundled model and data: profile, search, confirmation (CPU, minutes)"
	@echo "make test         run the tests"
	@echo "make lint         ruff and mypy"
	@echo "make cluster-up   Ray, PostgreSQL and MLflow on this machine (cluster/README.md); make cluster-down stops them"
	@echo "make setup        make the virtual environment $(VENV) alone"
	@echo "make clean        remove the environment and the results of the quickstart"

setup: $(READY)

# torch first and by its exact version: an open range would fetch the newest build
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(READY)

quickstart: $(READY)
	$(VENV)/bin/python -m jobs.quickstart

test: $(READY)
	$(VENV)/bin/python -m pytest -n $(TEST_WORKERS) --dist loadfile

lint: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy bft_ray jobs cluster

cluster-up: $(READY)
	$(VENV)/bin/python -m cluster.local up

cluster-down: $(READY)
	$(VENV)/bin/python -m cluster.local down

clean:
	rm -rf $(VENV) bft_results bft_studies.db* mlflow.db* mlartifacts mlruns build *.egg-info
