# Everything here needs Python 3.11 or later and make, nothing else.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Test processes at once: one more than cores, for many tests wait. Each needs about 4 GiB.
# One that dies ends them all: pytest-xdist would wait for it forever.
JOBS ?= $(shell $(PYTHON) -c 'import os; print(min(8, (os.cpu_count() or 1) + 1))')

# Real data and trained weights, where a folder with them lies beside the repository.
ifneq ($(wildcard ../shared/data),)
export AUTOCOMPRESS_DATA ?= $(abspath ../shared/data)
endif
ifneq ($(wildcard ../shared/weights),)
export AUTOCOMPRESS_WEIGHTS ?= $(abspath ../shared/weights)
endif

# The lowest supported versions of all libraries.
LOWEST := .venv-lowest

# Flower and its Ray, which need other versions than the rest.
FEDERATED := .venv-federated
# The converter of LiteRT wants older versions of pydantic and typing-extensions; all else is shared.
LITERT := .venv-litert
# Other tools, for the leaderboard: likewise.
PEERS := .venv-peers

# The browser's runtime, where npm is at hand.
WEB := $(VENV)/web
export NODE_PATH ?= $(abspath $(WEB)/node_modules)

.PHONY: help install docs docs-serve quickstart test test-slow test-gpu test-lowest test-federated
.PHONY: federated-env peers-env test-litert lint types check clean

help:  ## show what there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

install: $(STAMP)  ## make .venv and install autocompress with its tools

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "autocompress needs Python 3.11 or later; set PYTHON=python3.11 (or newer)." >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing packages into $(VENV), some gigabytes: this takes minutes and says nothing meanwhile."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev,executorch]'
	@if command -v npm >/dev/null; then \
	  npm install --silent --no-audit --no-fund --prefix $(WEB) onnxruntime-web@1.30.0 || \
	  echo "onnxruntime-web could not be installed: its tests will be skipped" >&2; fi
	@touch $@

quickstart: install  ## search a digits classifier under a latency budget
	$(BIN)/autocompress search studies/quickstart.yaml

test: install  ## the fast tests, in JOBS processes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder --max-worker-restart 0 --durations 25

test-slow: install  ## the tests that take minutes
	$(BIN)/python -m pytest -m 'slow and not gpu' --timeout 1800

test-gpu: install  ## the tests that need a CUDA device
	$(BIN)/python -m pytest -m gpu --timeout 1800

test-lowest: $(LOWEST)/.installed  ## the fast tests with the lowest supported versions (Python 3.11)
	OMP_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder --max-worker-restart 0

$(LOWEST)/.installed: constraints/lowest.txt pyproject.toml
	@test -x $(LOWEST)/bin/python || python3.11 -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check -c $< -e '.[dev]'
	@touch $@

docs: install  ## the documentation as a site, in build/site
	$(BIN)/mkdocs build --strict

docs-serve: install  ## the same while you write, on http://127.0.0.1:8000
	$(BIN)/mkdocs serve

federated-env: $(FEDERATED)/.installed  ## make .venv-federated, in which `federate` runs Flower

$(FEDERATED)/.installed: requirements/federated.txt pyproject.toml
	@test -x $(FEDERATED)/bin/python || $(PYTHON) -m venv $(FEDERATED)
	$(FEDERATED)/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	$(FEDERATED)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@

test-federated: install federated-env  ## the tests that need Flower
	AUTOCOMPRESS_FEDERATED_PYTHON=$(abspath $(FEDERATED)/bin/python) \
	  $(BIN)/python -m pytest -m federated --timeout 900

$(LITERT)/.installed: pyproject.toml $(STAMP)
	@test -x $(LITERT)/bin/python || $(BIN)/python -m venv --without-pip $(LITERT)
	@own() { "$$1" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; }; \
	  echo "import site; site.addsitedir('$$(own $(BIN)/python)')" > "$$(own $(LITERT)/bin/python)/below.pth"
	$(BIN)/python -m pip --python $(LITERT)/bin/python install --quiet --disable-pip-version-check \
	  -e '.[litert]'
	@touch $@

peers-env: install $(PEERS)/.installed  ## make .venv-peers, the tools of benchmarks/leaderboard.py

$(PEERS)/.installed: requirements/peers.txt $(STAMP)
	@test -x $(PEERS)/bin/python || $(BIN)/python -m venv --without-pip $(PEERS)
	@own() { "$$1" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; }; \
	  echo "import site; site.addsitedir('$$(own $(BIN)/python)')" > "$$(own $(PEERS)/bin/python)/below.pth"
	$(BIN)/python -m pip --python $(PEERS)/bin/python install --quiet --disable-pip-version-check -r $<
	@touch $@

test-litert: install $(LITERT)/.installed  ## the tests that need LiteRT
	$(LITERT)/bin/python -m pytest tests/targets/test_litert.py tests/targets/test_contract.py -k 'litert or LiteRt'

lint: install  ## style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install  ## static types
	$(BIN)/mypy autocompress

check: lint types test  ## all that CI runs

clean:  ## remove the virtual environment and caches
	rm -rf $(VENV) $(LOWEST) $(FEDERATED) $(LITERT) $(PEERS) .pytest_cache .mypy_cache .ruff_cache build dist \
	  *.egg-info
