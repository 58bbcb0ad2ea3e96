# Every target makes the virtual environment and installs its packages by itself. `make help` lists the targets.
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
FRESH ?=

export DO_NOT_TRACK := 1

.PHONY: help install wheelhouse demo test test-slow test-browser test-orchestration test-fresh lint resolve bench \
	test-gpu bench-gpu docs clean

# The environment is made again if PYTHON or GPU asks for another one, or if its Python or pip is gone.
ifneq ($(PYTHON)$(GPU)$(shell deploy/venv.sh --check || echo broken),)
.PHONY: $(INSTALLED)
endif

install: $(INSTALLED)       ## .venv with all packages; PYTHON, GPU and WHEELHOUSE choose which (deploy/venv.sh)

$(INSTALLED): pyproject.toml constraints.txt
	deploy/venv.sh
	@touch $@

wheelhouse: $(INSTALLED)    ## wheels of all installed packages in wheelhouse/, for a machine without a network
	mkdir -p wheelhouse && $(BIN)/python -m pip freeze --exclude-editable >wheelhouse/requirements.txt
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir wheelhouse -r wheelhouse/requirements.txt "setuptools>=80"

help:                       ## list the targets
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

demo: $(INSTALLED)          ## the pipeline on phantoms, from volumes to report page, in minutes on two cores
	$(BIN)/ctclip demo

# A test in which Python itself stands still ends too, with the stack of each thread.
test: $(INSTALLED)          ## the test suite in two processes: no network, no GPU
	$(BIN)/python -m pytest -m "not slow and not browser and not orchestration and not gpu" \
		--numprocesses 2 --dist loadfile --no-loadscope-reorder --durations 15 \
		-o faulthandler_timeout=1000 -o faulthandler_exit_on_timeout=true

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
	$(or $(PYTHON),python3) -m pytest --noconftest -m gpu -rs tests/gpu

bench-gpu:                  ## every figure of a GPU in minutes, into gpu-results/, with that Python
	PYTHONPATH=. $(or $(PYTHON),python3) benchmarks/gpu.py

resolve: $(INSTALLED)       ## constraints.txt has wheels for every supported version of Python
	for version in 3.11 3.12 3.13 3.14; do \
		$(BIN)/uv pip compile --quiet --no-build --python-version $$version --constraints constraints.txt \
			$(if $(PIP_INDEX_URL),--default-index $(PIP_INDEX_URL)) --extra dev pyproject.toml >/dev/null || exit 1; done

lint: resolve               ## style, format, types, and the packages of every Python
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
