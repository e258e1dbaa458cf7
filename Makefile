# lbless: `make` lists the targets. Everything that they need they install or build, and cache.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PYTHONPATH := tests
TWO_LANES := --numprocesses 2

.PHONY: help
help: ## List the targets
	@echo "lbless - load balancing without a load balancer, for Kubernetes"
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: demo
demo: root programs ## Show the main job on a LAN of namespaces; KEEP=1 leaves it up
	@$(BIN)/python -m demo $(if $(KEEP),--keep)

.PHONY: root
root:
	@[ "$$(id -u)" = 0 ] || { echo "The demonstration needs root, for network namespaces: run it as root." >&2; exit 1; }

.PHONY: down
down: $(VENV)/.ready ## Remove the lab that make demo KEEP=1 left up
	@$(BIN)/python -m demo --down

.PHONY: test
test: programs guest ## Run every test; PYTEST_ARGS="-k planner -x" passes through
	@$(BIN)/python -m pytest $(or $(PYTEST_ARGS),$(TWO_LANES))

.PHONY: soak
soak: programs guest ## Run the tests that take too long for every time: about an hour
	@$(BIN)/python -m pytest -m soak $(PYTEST_ARGS)

.PHONY: lint
lint: $(VENV)/.ready ## Check style, types and the import contracts
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

.PHONY: bench
bench: programs ## Measure speed and memory against their limits; BENCH_ARGS="planner" chooses
	@$(BIN)/python -m bench $(BENCH_ARGS)

.PHONY: programs
programs: system $(VENV)/.ready ## Find or build etcd and the programs of Kubernetes
	@$(BIN)/python -m lab.programs

.PHONY: guest
guest: system $(VENV)/.ready ## Build the virtual machine with an older kernel that tests/guest uses
	@$(BIN)/python -m lab.guestimage

.PHONY: chart
chart: $(VENV)/.ready ## Bring into the chart what is made: copies of the CRDs, and the table of its values
	@cp crds/*.yaml helm/lbless/files/crds/
	@$(BIN)/python -m lab.valuestable >helm/lbless/README.md

.PHONY: images
images: $(VENV)/.ready ## Build the images of operator and node, as archives that containerd imports
	@tests/lab/system-packages guest
	@$(BIN)/python -m lab.images

.PHONY: system
system: ## Install the system packages that are missing (Debian, Ubuntu)
	@tests/lab/system-packages

.PHONY: constraints
constraints: $(VENV)/.ready ## Pin the newest versions that pyproject.toml allows
	@$(PYTHON) -m venv --clear $(VENV)/compile
	@$(VENV)/compile/bin/pip install --quiet pip-tools
	@cd $(CURDIR) && env -u PIP_FIND_LINKS $(VENV)/compile/bin/pip-compile --quiet --upgrade --all-extras --generate-hashes \
	  --allow-unsafe --strip-extras --no-emit-index-url --no-emit-trusted-host --no-emit-find-links \
	  --output-file constraints.txt pyproject.toml
	@rm -rf $(VENV)/compile

.PHONY: clean
clean: ## Remove what was made in this folder (the cache of built programs stays)
	rm -rf $(VENV) dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The wanted packages with their hashes, then the project itself, editable and without looking any further.
$(VENV)/.ready: constraints.txt pyproject.toml tests/lab/python-environment
	@tests/lab/python-environment "$(PYTHON)" "$(VENV)"
	@touch $@
