# `make demo` sets up and trains a small model on real images; `make test` sets up and runs the quick tests, `make test-all`
# every test: kills, several ranks, Ray, servers and clusters, too.
PYTHON ?= python3
VENV ?= .venv
# Where pip finds a CPU build of torch on a machine whose pip is not set up for one: PyTorch's own wheel index for CPUs.
TORCH_INDEX ?=
BIN := $(VENV)/bin
DEMO := specs/brain

# Setup compiles no module. With this variable set Python would compile each one again at every import.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-all setup lint golden schema docs site bench clean

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt .ci/setup
	PYTHON="$(PYTHON)" TORCH_INDEX="$(TORCH_INDEX)" .ci/setup "$(VENV)"
	touch $@

demo: setup
	$(BIN)/ratc sample-data brain $(DEMO)/data
	$(BIN)/ratc compile $(DEMO)/config.yaml --target local
	RATC_PYTHON="$(abspath $(BIN)/python)" $(DEMO)/compiled/brain/local/run.sh

test: setup
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n 3 --no-loadscope-reorder -m "not slow"

test-all: setup
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n 4 --no-loadscope-reorder

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/shellcheck .ci/run .ci/setup tests/cluster/slurm/common tests/cluster/slurm/plain tests/cluster/slurm/site tests/cluster/slurm/up tests/cluster/slurm/down tests/cluster/slurm/node tests/cluster/slurm/user

# What is generated and committed: look at the difference before you commit it.
golden: setup
	$(BIN)/python -m tests.update_cases
	for folder in specs/*/compiled; do $(BIN)/ratc compile $$(dirname $$folder)/config.yaml --target local || exit; done

docs schema: setup
	$(BIN)/python -m ratc.spec.generate
	$(BIN)/python -m ratc.secrets.generate
	$(BIN)/python docs/generate.py
	$(BIN)/python -m tests.product.test_codes

# The site of the documentation, in build/site. A broken link or anchor is a failure.
site: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

bench: setup
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/trace_times.py
	$(BIN)/python benchmarks/sweep.py
	$(BIN)/python benchmarks/review.py
	$(BIN)/python benchmarks/study.py

clean:
	rm -rf "$(VENV)" build dist specs/*/data specs/*/outputs
