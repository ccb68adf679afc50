# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
# The build that the tests ran with; TORCH=torch takes the newest.
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
APT = $(shell test $$(id -u) = 0 || echo sudo) apt-get
CHROMIUM := -y --no-install-recommends chromium fonts-dejavu-core

.PHONY: install browser demo test test-fast lint format bench bench-why bench-why-quick gpu-check clean

install: $(VENV)/dev

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip

$(VENV)/demo: $(VENV)/bin/python pyproject.toml
	$(BIN)/pip install --quiet "$(TORCH)" -e ".[demo]"
	touch $@

$(VENV)/bench: $(VENV)/dev
	$(BIN)/pip install --quiet "$(TORCH)" -e ".[bench]"
	$(BIN)/pip install --quiet --no-deps litdata==0.2.76 torchsampler==0.1.2
	touch $@

$(VENV)/dev: $(VENV)/demo
	$(BIN)/pip install --quiet "$(TORCH)" -e ".[dev]"
	touch $@

browser: $(VENV)/dev  ## Chromium, for the test of a page; package lists may be missing or old
	@$(BIN)/python tests/browser.py 2>/dev/null || ! command -v apt-get >/dev/null || \
	    $(APT) install $(CHROMIUM) || { $(APT) update && $(APT) install $(CHROMIUM); }
	@$(BIN)/python tests/browser.py

demo: $(VENV)/demo  ## Train on real flights: balanced batches against the weighted loss
	$(BIN)/fastbalance demo --output demo_output

test: $(VENV)/dev lint browser  ## Everything, slow tests included
	$(BIN)/python -m pytest -m "slow or not slow"

test-fast: $(VENV)/dev browser  ## What a change should pass before every commit
	$(BIN)/python -m pytest

lint: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/bench  ## About ten minutes; writes bench/results and the table of README.md
	$(BIN)/python bench/order.py
	$(BIN)/python bench/loader.py
	$(BIN)/python bench/stream.py
	$(BIN)/python bench/scale.py
	$(BIN)/python bench/compiled.py
	$(BIN)/python bench/gpu_model.py
	$(BIN)/python bench/table.py

bench-why: $(VENV)/bench  ## Weighted loss against resampling, 18 experiments in half an hour; writes what docs/ shows of them
	$(BIN)/python bench/weighted_loss/run.py

bench-why-quick: $(VENV)/bench  ## The same with fewer seeds and steps; writes nothing
	$(BIN)/python bench/weighted_loss/run.py --quick

gpu-check: $(VENV)/dev  ## On a machine with a GPU: tests, compute-sanitizer and times; writes gpu.json, to be sent
	$(BIN)/python bench/gpu_check.py

clean:
	rm -rf $(VENV) .numba_cache demo_output build *.egg-info
