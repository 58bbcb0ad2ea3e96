# Every target makes the virtual environment and installs its packages by itself. `make help` lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
WHEELHOUSE ?=
FRESH ?=

# `>=3.A,<3.B` of pyproject.toml, and the same as a condition in Python
VERSIONS := $(shell sed -nE 's/^requires-python = "(.*)"/\1/p' pyproject.toml)
REQUIRED := $(shell echo "$(VERSIONS)" | sed -E 's/>=3\.([0-9]+),<3\.([0-9]+)/(3, \1) <= sys.version_info < (3, \2)/')
HAS_PYTHON := $(shell $(BIN)/python -c "import sys, pip; sys.exit(not $(REQUIRED))" >/dev/null 2>&1 && echo yes)

export DO_NOT_TRACK := 1

.PHONY: help install wheelhouse demo test test-slow test-browser test-orchestration test-fresh lint bench test-gpu \
	bench-gpu docs clean

install: $(INSTALLED)       ## the virtual environment .venv with all packages, from WHEELHOUSE alone if it names a folder

# An environment with another Python, with none or without pip is made again.
ifneq ($(HAS_PYTHON),yes)
.PHONY: $(INSTALLED)
endif

$(INSTALLED): pyproject.toml constraints.txt
ifneq ($(HAS_PYTHON),yes)
	@$(PYTHON) -c "import sys; sys.exit(not $(REQUIRED))" || \
		{ echo "$(PYTHON) is no Python $(VERSIONS): name one, as in make PYTHON=python3.12 install" >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
endif
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
		$(if $(WHEELHOUSE),--no-index --find-links $(WHEELHOUSE)) -e ".[dev]"
	@touch $@

wheelhouse: $(INSTALLED)    ## wheels of all installed packages in wheelhouse/, for a machine without a network
	mkdir -p wheelhouse && $(BIN)/python -m pip freeze --exclude-editable >wheelhouse/requirements.txt
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir wheelhouse -r wheelhouse/requirements.txt "setuptools>=80"

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

test-fresh:                 ## the first two commands in a clean Debian 13 (deploy/fresh.sh): needs root and debootstrap
	deploy/fresh.sh $(FRESH)

test-gpu:                   ## the kernels on a GPU, with the Python given as PYTHON, which has CUDA's PyTorch
	$(PYTHON) -m pytest --noconftest -m gpu -rs tests/gpu

bench-gpu:                  ## every figure of a GPU in minutes, into gpu-results/, with that Python
	PYTHONPATH=. $(PYTHON) benchmarks/gpu.py

lint: $(INSTALLED)          ## style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(INSTALLED)          ## the documentation site in build/site, where a broken link is an error
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[docs]"
	$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going -d build/doctrees docs build/site

bench: $(INSTALLED)         ## every benchmark: two ways side by side, and their ratio
	for file in benchmarks/bench_*.py; do $(BIN)/python $$file || exit 1; done

clean:                      ## remove the environment, caches and the demo
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis demo
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
