# Every target makes the virtual environment and installs what it needs by itself.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

export DO_NOT_TRACK := 1

.PHONY: install demo test test-slow test-browser test-orchestration lint bench clean

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@

demo: $(INSTALLED)          ## phantoms to report page, in minutes, on two cores
	$(BIN)/ctclip demo

test: $(INSTALLED)          ## the test suite, in two processes: no network, no GPU, nothing beside the clone
	$(BIN)/python -m pytest -m "not slow and not browser and not orchestration" \
		--numprocesses 2 --dist loadfile --no-loadscope-reorder --durations 15

test-slow: $(INSTALLED)     ## what takes minutes: the demo's learning, three seeds
	$(BIN)/python -m pytest -m slow

test-browser: $(INSTALLED)  ## the report page in a real Chromium, which it installs where Debian's packages may be
	command -v chromium >/dev/null || (apt-get update && apt-get install -y --no-install-recommends chromium)
	$(BIN)/python -m pytest -m browser -rs

test-orchestration: $(INSTALLED)  ## a Prefect server, a worker a pool, data that changes, workers that die
	$(BIN)/python -m pytest -m orchestration -rs

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(INSTALLED)         ## every benchmark: both ways side by side, a ratio printed
	for file in benchmarks/bench_*.py; do $(BIN)/python $$file || exit 1; done

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis demo
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
