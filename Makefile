# Every target sets up what it needs: a virtual environment in .venv, made once and refreshed when the dependencies change.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PEERS := $(VENV)/.peers
DEMO := $(VENV)/.demo
DOCS := $(VENV)/.docs

# The machine's cores run whole tests side by side; a test of small tensors gains nothing from threads of its own. Bytecode is
# kept, also where the environment says otherwise: each process that a test starts would compile gradest again.
PYTEST := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/pytest
# All tests of a file run in one process, for they share what is slow to start. Files with slow tests come first. Three processes
# keep two cores busy, because some tests wait, for a worker to start or for a deadline to pass.
SIDE_BY_SIDE := -n 3 --dist loadfile --no-loadscope-reorder

.PHONY: test test-unlinted test-deep lint chromium dieharder nginx caddy demo docs reproduction bench clean

# One case of each kind of thing. Linting, which takes one core, runs beside the tests.
test: chromium
	$(MAKE) --jobs 2 lint test-unlinted

test-unlinted: $(READY)
	$(PYTEST) $(SIDE_BY_SIDE) -m "not deep and not gpu and not benchmark"

# What `make test` leaves out: every pair and every option, longer statistics, things that take their time to start.
test-deep: $(READY) chromium dieharder nginx caddy docs
	$(PYTEST) $(SIDE_BY_SIDE) -m "deep and not gpu and not benchmark"

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Debian's own programs, which tests of the page, of the noise and of deployment drive; without them these tests are skipped.
chromium dieharder nginx caddy:
	@command -v $@ >/dev/null || { \
		if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
			apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y $@ >/dev/null; \
		else \
			echo "The tests that need $@ are skipped. To run them, apt-get install $@, as root."; \
		fi; \
	}

# Needs a tenth of what the tests do, so it has set-up of its own.
demo: $(DEMO)
	$(BIN)/gradest demo

# The site, in build/site, with all tutorials run. EXECUTE=off leaves their code out, EXECUTE=cache runs what has changed.
EXECUTE ?= force
docs: $(DOCS)
	OMP_NUM_THREADS=1 $(BIN)/python docs/site/build.py --execute $(EXECUTE)

# Rewrites docs/results/reproduction.md from the numbers that are kept, each with its source, in docs/results/reproduction.
reproduction: $(READY)
	$(BIN)/python docs/site/reproduction.py

# Rewrites docs/results/benchmarks.md and its charts. With SHORT=1 it takes three minutes and writes into runs/benchmarks.
RESULTS := $(if $(SHORT),runs/benchmarks,tests/benchmarks/results)
bench: $(PEERS)
	OMP_NUM_THREADS=2 $(BIN)/pytest -m benchmark -s tests/benchmarks --results $(RESULTS) $(if $(SHORT),--short)
	$(BIN)/python tests/benchmarks/report.py $(RESULTS) $(if $(SHORT),$(RESULTS),docs/results)/benchmarks.md

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +

define NEW_VENV
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("gradest needs Python 3.11 or newer; for example: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
endef

$(READY): pyproject.toml constraints.txt
	$(NEW_VENV)
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

$(DEMO): pyproject.toml constraints.txt
	$(NEW_VENV)
	$(BIN)/pip install --quiet -c constraints.txt -e '.[demo]'
	touch $@

$(DOCS): pyproject.toml constraints.txt
	$(NEW_VENV)
	$(BIN)/pip install --quiet -c constraints.txt -e '.[docs]'
	touch $@

$(PEERS): $(READY)
	$(BIN)/pip install --quiet -c constraints.txt -e '.[bench]'
	touch $@
