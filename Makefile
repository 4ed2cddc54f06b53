# Every target works on a fresh clone: it makes .venv and installs what it needs. A stamp file
# remembers the pyproject.toml that an environment was made from, so nothing is installed twice.
#
#   make train    train the default language model       make lint     ruff and the import rules
#   make test     lint, types and the test suite         make types    mypy --strict
#   make test-native    the tests that name no device, on the native one
#   make peers    install torch for the tests in tests/peers (also: make test PEERS=1)
#   make bench    every workload beside its peers        make fuzz     the property tests, for longer
#   make recipes  the full runs of the recipes, and their table in docs/recipes.md
#   make docs     the generated pages, and what the blocks of all pages print
#   make clean    remove everything that was made here

PYTHON ?= python3
JOBS ?= 2
PEERS ?=
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install -q
# Idle BLAS threads spin: beside another busy process a product takes ten times as long.
ONE_THREAD := OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1
# Of the `peers` extra in pyproject.toml only torch, at the version pinned there: no test needs jax,
# which the benchmarks have in an environment of its own.
ANY_DEVICE := tests/frontends tests/training tests/runtime
TORCH := $(shell sed -n 's/.*"\(torch==[^"]*\)".*/\1/p' pyproject.toml)

JAX := $(shell sed -n 's/.*"\(jax>=[^"]*\)".*/\1/p' pyproject.toml)

.PHONY: train recipes test test-native lint types pytest peers bench fuzz docs clean
.DELETE_ON_ERROR:

train: $(VENV)/run.stamp
	$(BIN)/retrograde train char-gpt

# Some twenty minutes in all, each at most ten; the data are downloaded the first time.
recipes: $(VENV)/test.stamp
	$(BIN)/python tools/recipes.py $(ARGS)

test: lint types pytest

lint: $(VENV)/test.stamp
	$(BIN)/ruff check .
	$(BIN)/python tools/check_installed.py imports

types: $(VENV)/test.stamp
	$(BIN)/python tools/check_installed.py types

pytest: $(VENV)/test.stamp $(if $(PEERS),peers)
	$(ONE_THREAD) $(BIN)/python -m pytest -n $(JOBS) $(ARGS)

# Most of the time is that of the C compiler: a second run takes it from the cache.
test-native: $(VENV)/test.stamp
	$(ONE_THREAD) RETROGRADE_BACKEND=native $(BIN)/python -m pytest -n $(JOBS) $(ANY_DEVICE) $(ARGS)

peers: $(VENV)/peers.stamp

# More than an hour; make bench ARGS="--only gpt-small" for less, ARGS=--list for the names.
bench: $(VENV)/peers.stamp $(VENV)/jax.stamp
	$(BIN)/python -m benchmarks --jax-python $(VENV)/jax/bin/python $(ARGS)

fuzz: $(VENV)/test.stamp
	$(ONE_THREAD) $(BIN)/python -m pytest -n $(JOBS) --hypothesis-profile=fuzz --timeout=3600 $(ARGS)

docs: $(VENV)/test.stamp
	$(BIN)/python tools/op_table.py
	$(BIN)/python tools/docs_outputs.py README.md docs/*.md

# JAX lives apart from PyTorch; where it cannot be installed the benchmarks say so and go on.
$(VENV)/jax.stamp: pyproject.toml | $(BIN)/python
	-$(PYTHON) -m venv $(VENV)/jax && \
	$(VENV)/jax/bin/python -m pip --disable-pip-version-check install -q '$(JAX)' && touch $@

clean:
	rm -rf $(VENV) .retrograde_cache build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/run.stamp: pyproject.toml | $(BIN)/python
	$(PIP) -e .
	@touch $@

$(VENV)/test.stamp: pyproject.toml | $(BIN)/python
	$(PIP) -e '.[test,dev]'
	@touch $@ $(VENV)/run.stamp

$(VENV)/peers.stamp: pyproject.toml | $(VENV)/test.stamp
	$(PIP) '$(TORCH)'
	@touch $@
