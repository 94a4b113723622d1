# The vocabulary of the project: `make help`. What each word needs is set up first, by setup.sh, in .venv.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
# Every target uses the one .venv, so `make -j` runs them in turn.
.NOTPARALLEL:

BIN := .venv/bin
ARGS ?=
JOBS ?= 3
# Tests that need something special have their own targets.
SPECIAL := gpu or llamacpp or slurm or ray or s3 or browser or monitoring or chaos or families
ALL_CHAOS := --seeds 0-25 --faults 500 --every-kind
SOME_SLURM := sbatch_takes or same_as_on_one or preemption_with_grace or killed_process and worker or refuses or cannot_begin or scancel or guide_as_typed or nothing_of_the_shell or a_server_on
SOME_RAY := same_as_on_one and 2 or finds_no_room or drained or wrong_address and nobody or a_server_on
OLDEST_RAY := $(shell sed -nE 's/^ray = \["ray\[default\]>=([0-9.]+)"\]/\1/p' pyproject.toml)
SOME_CHAOS := --seeds 7,10,11 --faults 25

.PHONY: help run test test-chaos test-chaos-sample test-families test-slow test-slow-sample test-documents test-s3 test-s3-slow test-slurm test-slurm-sample test-ray test-ray-sample test-ray-oldest oldest-ray test-gpu test-llama-cpp llama-cpp test-others others lint format bench peers docs image image-ray clean setup setup-dev test-monitoring test-monitoring-sample dashboards

help: ## Show this list
	@echo 'launchyard: one YAML recipe, trained on a laptop, and never lost'
	@echo
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 26
	@echo
	@echo '  variables: PYTHON=python3.12   ARGS="…" (passed on)   JOBS=3 (tests at once)   TORCH_INDEX=URL (see CONTRIBUTING.md)'

setup: ## Make .venv with what `launch` needs
	@./setup.sh train

setup-dev:
	@./setup.sh dev

run: setup ## Train the quickstart model here: launch --local
	@$(BIN)/launch --local $(ARGS)

test: setup-dev ## Run the tests (minutes)
	@$(BIN)/pytest -m 'not (slow or $(SPECIAL))' -n $(JOBS) --dist worksteal $(ARGS)

test-families: setup-dev ## Run the tests of every architecture, of which `make test` has a sample (minutes)
	@$(BIN)/pytest tests -m families -n $(JOBS) --dist worksteal $(ARGS)

test-slow: setup-dev ## Run the long suites as well (long)
	@$(BIN)/pytest -m 'slow and not ($(SPECIAL))' $(ARGS)

test-slow-sample: setup-dev ## Run a fair sample of the long suites
	@$(BIN)/pytest -m 'slow and not ($(SPECIAL))' --first-of-each-file $(ARGS)

test-documents: setup-dev ## Type the commands of documents about other tools as they are spelled here (minutes)
	@$(BIN)/pytest tests/documents $(ARGS)

test-s3: setup-dev ## Run the tests that need the S3 server, which they start themselves
	@$(BIN)/pytest -m 's3 and not slow' -n 3 --dist worksteal $(ARGS)

test-s3-slow: setup-dev ## Run those that let a store fail for minutes (half an hour)
	@$(BIN)/pytest -m 's3 and slow' -n $(JOBS) $(ARGS)

test-slurm: setup-dev ## Run the tests that need SLURM, which they start themselves (Debian or Ubuntu, its packages)
	@$(BIN)/pytest -m slurm $(ARGS)

test-slurm-sample: setup-dev ## Run a fair sample of them
	@$(BIN)/pytest -m 'slurm and not slow' -k '$(SOME_SLURM)' $(ARGS)

test-ray: setup-dev ## Run the tests that need a Ray of several nodes, which they start themselves (Linux)
	@$(BIN)/pytest -m ray $(ARGS)

test-ray-sample: setup-dev ## Run a fair sample of them
	@$(BIN)/pytest -m 'ray and not slow' -k '$(SOME_RAY)' $(ARGS)

oldest-ray: setup-dev
	@test -d .venv/ray-$(OLDEST_RAY)/ray || $(BIN)/pip install --quiet --no-deps --target .venv/ray-$(OLDEST_RAY) 'ray==$(OLDEST_RAY).*'

test-ray-oldest: oldest-ray ## Run some of them with the oldest Ray that is promised
	@PYTHONPATH=$$PWD/.venv/ray-$(OLDEST_RAY) $(BIN)/pytest -m 'ray and not slow' -k 'same_as_on_one and 2' $(ARGS)

llama-cpp: setup-dev
	@test -d .venv/llama-cpp/xllamacpp || $(BIN)/pip install --quiet --no-deps --target .venv/llama-cpp 'xllamacpp>=2026.10.11549'

test-llama-cpp: llama-cpp ## Let llama.cpp read the GGUF files of every family (fetches xllamacpp, 30 MB)
	@PYTHONPATH=$$PWD/.venv/llama-cpp $(BIN)/pytest -m llamacpp -n $(JOBS) $(ARGS)

others: setup-dev
	@test -d .venv/others/litdata || $(BIN)/pip install --quiet --no-deps --target .venv/others torchao bitsandbytes litdata lightning-utilities boto3 s3transfer zstd

test-others: others ## Run the tests of packages that a run may use and `make setup-dev` leaves out (150 MB)
	@PYTHONPATH=$$PWD/.venv/others $(BIN)/pytest tests/model/adapt/test_codes.py tests/training/precision tests/training/data/litdata -m 'not gpu and not slow' -n $(JOBS) $(ARGS)

test-monitoring: setup-dev ## Run the tests that need Prometheus, which they fetch themselves, and Chromium where it is
	@$(BIN)/pytest -m 'monitoring or browser' $(ARGS)

test-monitoring-sample: setup-dev ## Run a fair sample of them
	@$(BIN)/pytest -m '(monitoring or browser) and not slow' -k 'not stopped_rank and not wrong_is_found and not made_whole' $(ARGS)

test-chaos: setup-dev ## Kill and hinder runs some 500 times, at chosen instants (half an hour); SEEDS=7 or 0-3: only these
	@$(BIN)/pytest tests/chaos -n $(JOBS) --dist worksteal $(if $(SEEDS),--seeds $(SEEDS),$(ALL_CHAOS)) $(ARGS)

test-chaos-sample: setup-dev ## Run a fair sample of that
	@$(BIN)/pytest tests/chaos -n $(JOBS) --dist worksteal $(SOME_CHAOS) $(ARGS)

test-gpu: setup-dev ## Run the tests that need a GPU
	@$(BIN)/pytest -m gpu $(ARGS)

lint: setup-dev ## Check style, types and the direction of imports
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: setup-dev ## Format the code
	@$(BIN)/ruff check --fix-only .
	@$(BIN)/ruff format .

bench: setup-dev ## Measure the quick set against its goals (ten minutes, no network); ARGS=--peers: beside peers too
	@$(BIN)/python benchmarks/quick.py $(ARGS)

peers: setup-dev ## Fetch the peers that `make bench ARGS=--peers` runs, each into a folder of its own (100 MB)
	@$(call peer,litgpt,litgpt lightning pytorch-lightning lightning-utilities torchmetrics jsonargparse typeshed-client docstring-parser)
	@$(call peer,litdata,litdata lightning-utilities boto3 s3transfer)
	@$(call peer,trl,trl)

# Without what they depend on: that is in .venv, but for the packages that are named, and torchvision, which breaks torch.
peer = test -d .venv/peers/$(1) || $(BIN)/pip install --quiet --no-deps --target .venv/peers/$(1) $(2)

docs: setup-dev ## Write docs/reference anew from the code
	@$(BIN)/python docs/generate.py

dashboards: setup-dev ## Write the Grafana dashboards anew from their builder
	@$(BIN)/python -m launchyard.launcher.monitor.dashboards

image: ## Build the container image launchyard:local
	docker build --tag launchyard:local $(if $(TORCH_INDEX),--build-arg TORCH_INDEX=$(TORCH_INDEX)) .

image-ray: ## Build launchyard:ray, for the pods of a Ray cluster on Kubernetes
	docker build --target ray --tag launchyard:ray $(if $(TORCH_INDEX),--build-arg TORCH_INDEX=$(TORCH_INDEX)) .

clean: ## Remove .venv, caches and builds; runs stay
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
