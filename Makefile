# MinT: everything a newcomer or CI runs. `make help` lists it.
.DEFAULT_GOAL := help
SHELL := /bin/bash

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.PHONY: help install quickstart test lint types format test-slow sdk-matrix test-gpu tiny model-card proto bench bench-training bench-sampling bench-mismatch bench-checkpoints bench-policies bench-gpu bench-reliability simulation soak tiny-vla programs docs clean

help: ## This list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-17s %s\n", $$1, $$2}'

install: $(STAMP) ## Make the environment in .venv, with `mint` on its path

# torch comes first and by itself: which build pip takes then follows from its own settings, such as an index of CPU
# builds, and not from what another package asks for. tinker-cookbook comes without what it depends on: tml-renderers, which
# it asks for, is not on every index in the version that it wants, and what its programs need besides is in the extra `programs`.
$(STAMP): pyproject.toml constraints.txt
	@echo "making the environment in $(VENV) (a few minutes the first time)"
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { rm -rf $(VENV); $(PYTHON) -m venv $(VENV); } || \
		{ rm -rf $(VENV); echo "$(PYTHON) -m venv failed; on Debian: apt install python3-venv"; exit 1; }
	@echo "  1/3 torch"
	@$(PIP) install --constraint constraints.txt torch
	@echo "  2/3 MinT and the rest"
	@$(PIP) install --constraint constraints.txt --editable '.[dev]'
	@echo "  3/3 tinker-cookbook"
	@$(PIP) install --constraint constraints.txt --no-deps tinker-cookbook
	@touch $@

quickstart: $(STAMP) ## Watch the built-in model learn, by SFT and then by RL
	@$(BIN)/mint run examples/quickstart.py

test: lint types $(STAMP) ## Lint, types and tests
	$(BIN)/python -m pytest -m "not slow and not gpu" --numprocesses logical --dist loadfile --timeout 300

lint: $(STAMP) ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP) ## mypy --strict
	$(BIN)/mypy

format: $(STAMP) ## Let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test-slow: $(STAMP) ## The tests that take longer
	$(BIN)/python -m pytest -m slow

sdk-matrix: $(STAMP) ## What each version of the SDK can do here (about 2 minutes)
	$(BIN)/python -m tests.sdks.matrix

test-gpu: $(STAMP) ## The tests that need a CUDA device
	$(BIN)/python -m pytest -m gpu

programs: $(STAMP) ## tinker-cookbook's programs and the tinker command, with the time of each (some minutes)
	$(BIN)/python -m pytest tests/published

docs: $(STAMP) ## The documentation as a site, in build/site
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet
	@echo "build/site/index.html; with search: $(BIN)/python -m http.server -d build/site --bind 127.0.0.1 8080"

tiny: $(STAMP) ## Train the built-in base model again (about 40 minutes on 2 cores)
	$(BIN)/python -m mint.tiny.recipe

tiny-vla: $(STAMP) ## Train the built-in base of robot policies again (about 3 minutes on 1 core)
	$(BIN)/python -m mint.tiny_vla.recipe

model-card: $(STAMP) ## Measure what a one-minute LoRA teaches it (about 25 minutes)
	$(BIN)/python -m benchmarks.model_card --write

proto: $(STAMP) ## Generate the protobuf code of src/mint/wire/messages.proto
	cd src && ../$(BIN)/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. mint/wire/messages.proto

bench: $(STAMP) ## Latencies, start-up time and memory
	$(BIN)/python -m benchmarks.latency

bench-training: $(STAMP) ## Training speed, against the machine and plain PEFT (about 10 minutes)
	$(BIN)/python -m benchmarks.training

bench-checkpoints: $(STAMP) ## Lists, look-ups and expiry with 100,000 checkpoints
	$(BIN)/python -m benchmarks.checkpoints

bench-sampling: $(STAMP) ## Sampling speed, against the machine and plain generation (about 6 minutes)
	$(BIN)/python -m benchmarks.sampling

bench-policies: $(STAMP) ## Training speed of robot policies, and what kept images save (about 3 minutes)
	$(BIN)/python -m benchmarks.policies

bench-mismatch: $(STAMP) ## How far sampled log-probabilities are from a training pass's
	$(BIN)/python -m benchmarks.mismatch

bench-reliability: $(STAMP) ## 100 × kill -9 under programs of the SDK, and what it costs to lose nothing (about 25 minutes)
	$(BIN)/python -m benchmarks.reliability

simulation: $(STAMP) ## 10,000 random schedules of crashes, retries and gaps in a simulated world
	$(BIN)/python -m tests.simulation --schedules 10000

soak: $(STAMP) ## Mixed traffic for 20 minutes: memory, files and rows must not grow
	$(BIN)/python -m benchmarks.soak

bench-gpu: $(STAMP) ## Model FLOP utilisation of training on a CUDA device
	$(BIN)/python -m benchmarks.gpu

clean: ## Remove the environment and caches
	rm -rf $(VENV) .sdks .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist src/*.egg-info
