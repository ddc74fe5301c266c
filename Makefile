# Every target sets up what it needs: a virtual environment in .venv, made once and refreshed when the dependencies change.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# The machine's cores run whole tests side by side; a test of small tensors gains nothing from threads of its own.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest

.PHONY: test lint demo bench clean

test: lint
	$(PYTEST) -n 2 --dist loadgroup -m "not gpu and not benchmark"

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

demo: $(READY)
	$(BIN)/gradest demo

bench: $(READY)
	$(BIN)/pytest -m benchmark -s

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("gradest needs Python 3.11 or newer; for example: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@
