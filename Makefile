# Every target makes the virtual environment and installs its packages by itself. `make help` lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

export DO_NOT_TRACK := 1

.PHONY: help install demo test test-slow test-browser test-orchestration lint bench test-gpu bench-gpu clean

install: $(INSTALLED)       ## the virtual environment .venv with all packages

$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@

help:                       ## list the targets
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

demo: $(INSTALLED)          ## the pipeline on phantoms, from volumes to report page, in minutes on two cores
	$(BIN)/ctclip demo

test: $(INSTALLED)          ## the test suite in two processes: no network, no GPU
	$(BIN)/python -m pytest -m "not slow and not browser and not orchestration and not gpu" \
		--numprocesses 2 --dist loadfile --no-loadscope-reorder --durations 15

test-slow: $(INSTALLED)     ## tests of several minutes each: rebuilds, kills, the demo's learning over three seeds
	$(BIN)/python -m pytest -m slow

test-browser: $(INSTALLED)  ## the report page in Chromium, installed from Debian's packages if missing
	command -v chromium >/dev/null || (apt-get update && apt-get install -y --no-install-recommends chromium)
	$(BIN)/python -m pytest -m browser -rs

test-orchestration: $(INSTALLED)  ## a Prefect server, one worker per pool, changed data, killed workers
	$(BIN)/python -m pytest -m orchestration -rs

test-gpu:                   ## the kernels on a GPU, with the Python given as PYTHON, which has CUDA's PyTorch
	$(PYTHON) -m pytest --noconftest -m gpu -rs tests/gpu

bench-gpu:                  ## every figure of a GPU in minutes, into gpu-results/, with that Python
	PYTHONPATH=. $(PYTHON) benchmarks/gpu.py

lint: $(INSTALLED)          ## style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(INSTALLED)         ## every benchmark: two ways side by side, and their ratio
	for file in benchmarks/bench_*.py; do $(BIN)/python $$file || exit 1; done

clean:                      ## remove the environment, caches and the demo
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis demo
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
