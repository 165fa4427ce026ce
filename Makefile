# Every target does its own set-up: on a bare machine `make demo` and `make test` are all that is needed.

PYTHON ?= python3
BIN := .venv/bin
RUN := $(BIN)/python -m
PACKAGES := methods aggregators compressors muster exchange peer coordinator simulator cli benchmarks examples tools

# The environment is made anew only when what it is made from, or where it lies, has changed.
STAMP := .venv/.ready-$(shell (pwd; cat pyproject.toml constraints.txt) | cksum | cut -d' ' -f1)

# In the order of the folders: the longest files have few tests, and would come last by number of tests.
PYTEST_ARGS ?= -q -n auto --dist loadfile --no-loadscope-reorder
BENCH ?= $(patsubst benchmarks/%.py,%,$(filter-out benchmarks/_%,$(wildcard benchmarks/*.py)))
BENCH_ARGS ?=
SOAK_SECONDS ?= 3600

.PHONY: help setup demo test lint format bench soak protos clean

help:
	@echo "make demo    five peers, one of them lying: four runs and what they reach"
	@echo "make test    all checks and all tests"
	@echo "make lint    ruff, pyright strict, mypy strict, import rules"
	@echo "make format  let ruff mend what it can"
	@echo "make bench   every benchmark; BENCH=rounds BENCH_ARGS='--quick --json' for one"
	@echo "make soak    the tests again and again on fresh seeds, for SOAK_SECONDS (3600)"
	@echo "make protos  generate the Python code of protos/v1 anew"
	@echo "make clean   remove the environment and all caches"

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Muster needs Python 3.11 or newer; this is %d.%d. Try: make PYTHON=python3.12" % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(RUN) pip install --quiet -c constraints.txt torch==2.13.0
	$(RUN) pip install --quiet -c constraints.txt -e '.[dev]'
	@rm -f .venv/.ready-*
	@touch $@

demo: setup
	$(BIN)/muster demo

test: setup lint
	@tools/system-packages
	$(RUN) pytest $(PYTEST_ARGS)

lint: setup
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(BIN)/lint-imports --no-cache
	$(RUN) mypy $(PACKAGES)
	$(RUN) pyright

format: setup
	$(RUN) ruff check --fix .
	$(RUN) ruff format .

bench: setup
	@for name in $(BENCH); do echo "== $$name" >&2; $(RUN) benchmarks.$$name $(BENCH_ARGS) || exit 1; done

soak: setup
	$(RUN) tools.soak --seconds $(SOAK_SECONDS)

protos: setup
	$(RUN) tools.protos

clean:
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
