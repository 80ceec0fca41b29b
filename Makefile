# Everything here sets up what it needs: `make demo` and `make test` work in a fresh checkout.
#
# torch is the CPU build, pinned. For another one:
#   make demo TORCH="torch==2.13.0+rocm7.1" TORCH_INDEX=https://download.pytorch.org/whl/rocm7.1
#   make demo TORCH="torch" TORCH_INDEX=https://download.pytorch.org/whl/cu130

PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0+cpu
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu

BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test conformance lint bench browser clean

demo: $(READY)  ## embed sentences with real weights through xattn, and say what ran
	$(BIN)/python examples/minilm.py

test: $(READY)  ## the tests
	$(BIN)/python -m pytest -n 2 $(PYTEST)

conformance: $(READY)  ## hold every backend present to the golden outputs: build/conformance/<backend>.json, .xml and .html
	$(BIN)/python -m xattn_conformance run --backend all --level full --out build/conformance $(CONFORMANCE)

lint: $(READY)  ## ruff and mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)  ## measure what the documentation promises: a table, build/bench/bench.json and bench.png
	$(BIN)/python benchmarks/run.py $(BENCH)

browser:  ## the browser that the tests of the report page drive (Debian's packages; needs root where it is missing)
	command -v chromium chromedriver > /dev/null || \
	{ apt-get -qq update && apt-get -qq install -y --no-install-recommends chromium chromium-driver; }

clean:
	rm -rf $(VENV) build dist

# The configured index first, which may hold a build of its own, then torch's.
$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet "$(TORCH)" || \
	$(BIN)/python -m pip install --quiet --index-url $(TORCH_INDEX) "$(TORCH)"
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@
