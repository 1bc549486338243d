# `make demo` and `make test` do everything: each sets up its own .venv first.
PYTHON ?= python3
BIN := .venv/bin
PIP := -m pip --disable-pip-version-check install -q
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: demo test test-quick test-lowest lint types check attack clean
.SILENT:

demo: .venv/.installed
	$(BIN)/radial generate "a large red star moves from left to right on a striped background" --seed 7

test: .venv/.installed-dev
	echo "all tests, some 35 minutes on two cores"
	$(PYTEST)

test-quick: .venv/.installed-dev
	echo "the quick tests, under 3 minutes on two cores"
	$(PYTEST) -m "not slow"

# With the lowest versions that pyproject.toml allows, but for PyTorch, in an environment of their own.
test-lowest: .venv-lowest/.installed
	echo "the quick tests with the lowest supported versions"
	OMP_NUM_THREADS=1 .venv-lowest/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow"

lint: .venv/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/.installed-dev
	$(BIN)/mypy

check: lint types test

# On a server of its own, on 127.0.0.1; some five minutes.
attack: .venv/.installed-dev
	$(BIN)/python benchmarks/attack.py

clean:
	rm -rf .venv .venv-lowest

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Radial needs Python 3.11 or later; set PYTHON=python3.11")'
	echo "setting up .venv: PyTorch, then Radial and its studio; a few minutes"
	$(PYTHON) -m venv .venv
	$(BIN)/python $(PIP) -c constraints.txt torch==2.13.0
	$(BIN)/python $(PIP) -c constraints.txt -e '.[studio]'
	touch $@

.venv/.installed-dev: .venv/.installed
	echo "adding what the tests need"
	$(BIN)/python $(PIP) -c constraints.txt -e '.[dev]'
	touch $@

.venv-lowest/.installed: pyproject.toml
	echo "setting up .venv-lowest; a few minutes"
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python $(PIP) uv
	.venv-lowest/bin/uv pip compile -q --resolution lowest-direct --extra dev pyproject.toml -o .venv-lowest/lowest.txt
	sed -i '/^torch==/d' .venv-lowest/lowest.txt
	.venv-lowest/bin/python $(PIP) torch==2.13.0
	.venv-lowest/bin/python $(PIP) -c .venv-lowest/lowest.txt -e '.[dev]'
	touch $@
