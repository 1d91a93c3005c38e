# make run    the default study on this machine, start to end; again: goes on where it was, or has nothing to do
# make lint   style, format and types, without a test
# make test   the same, and all tests that this machine can run: a quarter of an hour on two cores
# make test-fast  the tests that need neither a scheduler nor an image nor seconds each: a minute
# make docs   the documentation, into build/docs; warnings are errors
# make bench  the benchmarks; prints tables, writes tests/benchmarks/results/
# make benchmarks  errors on published sets in the folder DATA, into docs/studies/benchmarks; a quarter of an hour on two cores
# make clean  the environment, caches and results of this checkout
# Nothing is written outside this directory.

PYTHON ?= python3.11
VENV := .venv
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check --no-cache-dir install --quiet -c constraints.txt
PYTEST := $(VENV)/bin/python -m pytest --dist loadfile --no-loadscope-reorder
SITE ?= local
STUDY ?= default
DATA ?= data
COMPILED := gnnscale/atoms/neighbors.cpp $(shell find gnnscale/native -name '*.cpp' -o -name '*.h')

.PHONY: run lint test test-fast docs bench benchmarks clean
run: $(VENV)/ready
	$(VENV)/bin/python workflow/run.py --site $(SITE) --study $(STUDY)

lint: $(VENV)/ready
	$(VENV)/bin/python -m ruff check .
	$(VENV)/bin/python -m ruff format --check .
	$(VENV)/bin/python -m mypy

test: lint
	$(PYTEST) -n auto

test-fast: $(VENV)/ready
	$(PYTEST) -n logical -m "not slow and not slurm and not apptainer and not faults"

docs: $(VENV)/ready
	@$(VENV)/bin/python -c "import furo, myst_parser, sphinx" 2>/dev/null || DS_BUILD_OPS=0 $(PIP) -e ".[docs]"
	$(VENV)/bin/python -m sphinx -W --keep-going -q -d build/doctrees docs build/docs
	@echo "build/docs/index.html"

bench: $(VENV)/ready
	$(VENV)/bin/python -m tests.benchmarks

benchmarks: $(VENV)/ready
	$(VENV)/bin/python workflow/run.py --site $(SITE) --study benchmarks --set filesystems.data=$(DATA)
	mkdir -p docs/studies/benchmarks
	cp runs/benchmarks/points.csv runs/benchmarks/beside_published.csv docs/studies/benchmarks/

clean:
	rm -rf $(VENV) .cache .pytest_cache .ruff_cache .hypothesis runs build *.egg-info gnnscale/atoms/*.so gnnscale/native/*.so

$(VENV)/ready: pyproject.toml constraints.txt setup.py $(COMPILED)
	@echo "[1/3] a virtual environment in $(VENV)"
	$(PYTHON) -m venv $(VENV)
	@echo "[2/3] PyTorch: a download of some 200 MB, half a minute to a few minutes"
	$(PIP) torch==2.13.0
	@echo "[3/3] Parsl, DeepSpeed, ADIOS2, tblite, ASE and others: about a minute; two files are compiled, if g++ is there"
	DS_BUILD_OPS=0 $(PIP) -e ".[test]"
	touch $@
