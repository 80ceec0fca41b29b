# Everything here sets up what it needs: `make demo` and `make test` work in a fresh checkout.
#
# torch is the CPU build, pinned. For another one:
#   make demo TORCH="torch==2.13.0+rocm7.1" TORCH_INDEX=https://download.pytorch.org/whl/rocm7.1
#   make demo TORCH="torch" TORCH_INDEX=https://download.pytorch.org/whl/cu130

PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0+cpu
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu

SUDO := $(if $(filter 0,$(shell id -u)),,sudo)
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# AMD's aiter and a Triton whose interpreter and AMD compiler are known to do: for test-aiter alone.
AITER ?= amd-aiter==0.1.7.post2.dev18
TRITON ?= triton==3.7.1
AITER_VENV ?= .venv-aiter
AITER_BIN := $(AITER_VENV)/bin
AITER_READY := $(AITER_VENV)/.ready

# The oldest transformers that the integration is for, beside what else the environment has: for test-oldest alone.
OLDEST ?= transformers==4.57.6 huggingface-hub==0.36.2 tokenizers==0.22.2 requests
OLDEST_PACKAGES := build/oldest
OLDEST_READY := $(OLDEST_PACKAGES)/.ready

# How many cases a run of the suite has, and which tests are run. What every change must pass; `make extended` has the
# rest.
LEVEL ?= core
MARKED ?= not extended

# `make families CHECK=` writes docs/families.md instead of comparing with it.
CHECK ?= --check

.PHONY: demo test quick families conformance standins test-aiter test-aiter-reversed test-oldest extended lint bench docs \
	browser clean

demo: $(READY)  ## embed sentences with real weights through xattn, and say what ran
	$(BIN)/python examples/minilm.py

test: $(READY)  ## the tests, but for those marked extended
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m "$(MARKED)" $(PYTEST)

quick: $(READY)  ## the tests of what changed since this branch left main, as many as fit into half a minute
	$(BIN)/python tests/quick.py

families: $(READY)  ## transformers' families of models in every way of use, as docs/families.md has it
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(BIN)/python -m families $(CHECK)

conformance: $(READY)  ## hold every backend present to the golden outputs: build/conformance/<backend>.json, .xml and .html
	$(BIN)/python -m xattn_conformance run --backend all --level $(LEVEL) --out build/conformance $(CONFORMANCE)

NVIDIAS := fa3-standin fa4-standin cudnn-standin
AITERS := $(addprefix aiter-standin-,gfx90a gfx942 gfx950 gfx1201 gfx1250)

standins: $(AITERS) neuron-standin neuron-legacy-standin neuron-nxdi-standin $(NVIDIAS)  ## vendors' backends over stand-ins for their kernels: build/conformance/<profile>/

$(AITERS): BACKEND = aiter
neuron-standin: BACKEND = nki
neuron-legacy-standin neuron-nxdi-standin: BACKEND = nki-legacy
$(NVIDIAS): BACKEND = $(@:-standin=)

$(AITERS) neuron-standin neuron-legacy-standin neuron-nxdi-standin $(NVIDIAS): $(READY)
	$(BIN)/python -m xattn_conformance run --backend $(BACKEND) --device cpu --profile $@ --level $(LEVEL) \
	--out build/conformance/$@ $(CONFORMANCE)

test-aiter: $(AITER_READY)  ## aiter's own Triton kernels, on the CPU and compiled for AMD's GPUs. XATTN_AITER_PATH: another source tree
	$(AITER_BIN)/python -m pytest -n 2 -m "$(MARKED)" tests/rocm/aiter $(PYTEST)
	$(AITER_BIN)/python -m xattn_conformance run --backend aiter-triton --device cpu --profile aiter-interpreter \
	--level $(LEVEL) --out build/conformance/aiter-interpreter $(CONFORMANCE)
	$(AITER_BIN)/python -m xattn_elsewhere.aiter.codeobjects

test-aiter-reversed: $(AITER_READY)  ## the same kernels over core, the last program of each launch first, which shows races
	$(AITER_BIN)/python -m xattn_conformance run --backend aiter-triton --device cpu --profile aiter-interpreter-reversed \
	--out build/conformance/aiter-interpreter-reversed $(CONFORMANCE)

test-oldest: $(OLDEST_READY)  ## the tests of the integration with the oldest transformers that it is for
	OMP_NUM_THREADS=1 PYTHONPATH=$(OLDEST_PACKAGES) $(BIN)/python -m pytest -n 2 --dist loadfile -m "$(MARKED)" \
	tests/integrations/test_transformers*.py tests/integrations/test_described_mask.py tests/integrations/test_optim*.py \
	$(PYTEST)

extended:  ## the other tests, and the suite beyond level core: every backend in full, vendors' and stand-ins extended
	$(MAKE) test MARKED=extended
	$(MAKE) families
	$(MAKE) conformance LEVEL=full
	$(MAKE) standins test-aiter test-oldest LEVEL=extended MARKED=extended
	$(MAKE) test-aiter-reversed

lint: $(READY)  ## ruff and mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)  ## measure what the documentation promises: a table, build/bench/bench.json and bench.png
	$(BIN)/python benchmarks/run.py $(BENCH)

# mkdocstrings looks for ruff on the path, to break long signatures.
docs: $(READY)  ## the documentation site: build/site/index.html. A link that leads nowhere is an error
	NO_MKDOCS_2_WARNING=1 PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m mkdocs build --quiet --strict

# Debian's packages, where they are missing; there it needs root, or sudo. The tests that need them are skipped without.
browser:  ## Chromium and its driver, for the tests that read the report page as a person does
	{ command -v chromium || command -v google-chrome; } > /dev/null && command -v chromedriver > /dev/null || \
	{ $(SUDO) apt-get -qq update && $(SUDO) apt-get -qq install -y --no-install-recommends chromium chromium-driver; }

clean:
	rm -rf $(VENV) $(AITER_VENV) build dist

# The configured index first, which may hold a build of its own, then torch's.
$(READY): pyproject.toml conformance/pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet "$(TORCH)" || \
	$(BIN)/python -m pip install --quiet --index-url $(TORCH_INDEX) "$(TORCH)"
	$(BIN)/python -m pip install --quiet --editable ".[dev]" --editable conformance
	touch $@

# aiter without what it requires: its Triton kernels need torch and Triton alone.
$(AITER_READY): pyproject.toml conformance/pyproject.toml
	$(PYTHON) -m venv $(AITER_VENV)
	$(AITER_BIN)/python -m pip install --quiet --upgrade pip
	$(AITER_BIN)/python -m pip install --quiet "$(TORCH)" || \
	$(AITER_BIN)/python -m pip install --quiet --index-url $(TORCH_INDEX) "$(TORCH)"
	$(AITER_BIN)/python -m pip install --quiet "$(TRITON)" packaging pytest-xdist
	$(AITER_BIN)/python -m pip install --quiet --no-deps "$(AITER)"
	$(AITER_BIN)/python -m pip install --quiet --editable . --editable conformance
	touch $@

# A folder that goes first on the path, over the same torch. What transformers needs else is in the environment.
$(OLDEST_READY): $(READY)
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target $(OLDEST_PACKAGES) $(OLDEST)
	touch $@
