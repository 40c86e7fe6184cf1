# `make` prints what there is. Everything runs in .venv, which `make setup` makes.

PYTHON ?= python3
VENV ?= .venv
# Where the CPU build of torch comes from; any index that has it will do.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
TORCH_VERSION ?= 2.13.0

BIN := $(VENV)/bin
STAMP := $(VENV)/.complete
LOCKS := requirements/cpu.txt requirements/cpu-no-deps.txt
export PYTHONPATH := $(CURDIR)/common:$(CURDIR)
export OMP_NUM_THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: help setup protos check fix test test-unit test-integration test-faults test-slurm test-gpu bench \
	run demo deploy undeploy clean

help: ## Print this help
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## Make the virtual environment, find or fetch etcd and promtool

$(STAMP): $(LOCKS) pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' \
		|| { echo "Realloc needs Python 3.11 or 3.12: make PYTHON=python3.11 ..."; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || tools/install_venv.sh
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --retries 1 \
		--index-url $(TORCH_INDEX) torch==$(TORCH_VERSION)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements/cpu.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps \
		-r requirements/cpu-no-deps.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps \
		--no-build-isolation --editable .
	$(BIN)/python tools/fetch_etcd.py
	-$(BIN)/python tools/fetch_promtool.py
	touch $(STAMP)

protos: setup ## Generate common/realloc/api from protos/
	$(BIN)/python tools/protos.py

check: setup ## Formatting, lint, types, layers, protos: everything that needs no run
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/buf lint protos
	$(BIN)/python tools/protos.py --check
	$(BIN)/python tools/lock.py --check
	$(BIN)/hadolint deploy/docker/Dockerfile
	$(BIN)/python -m deploy.kubernetes check
	$(BIN)/python -m deploy.observability.dashboard --check
	$(BIN)/python tools/telemetry_page.py --check

fix: setup ## Format, and mend what ruff can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

test: setup ## All tests that need no GPU: real etcd, gloo ranks, vLLM
	$(BIN)/python -m pytest -m "not gpu and not slurm" tests

test-unit: setup ## Only the fast tests
	$(BIN)/python -m pytest tests/unit tests/golden

test-integration: setup ## Only the tests that start processes
	$(BIN)/python -m pytest -m "not gpu" tests/contract tests/integration

test-faults: setup ## Only the tests that kill processes
	$(BIN)/python -m pytest tests/faults

test-slurm: setup ## A cluster on a real Slurm of four virtual nodes; not part of make test
	$(BIN)/python tools/fetch_slurm.py
	$(BIN)/python -m pytest tests/slurm

test-gpu: setup ## Only the tests that need a CUDA device
	$(BIN)/python -m pytest -m gpu tests

bench: setup ## Print the tables of docs/benchmarks
	$(BIN)/python -m tools.bench.plan_reallocation
	$(BIN)/python -m tools.bench.realloc
	$(BIN)/python -m tools.bench.realloc_hosts
	$(BIN)/python -m tools.bench.search
	$(BIN)/python -m tools.bench.checkpoint
	$(BIN)/python -m tools.bench.memory
	$(BIN)/python -m tools.bench.tracing

run: setup ## Keep a local cluster up until Ctrl-C
	$(BIN)/python examples/arithmetic/make_data.py run/arithmetic
	$(BIN)/python examples/arithmetic/make_model.py run/arithmetic/model
	$(BIN)/python -m deploy.local

demo: setup ## Train a tiny model by SFT and PPO on a local cluster, and report
	$(BIN)/python tools/demo.py

deploy: deploy-$(or $(TARGET),local) ## Bring a cluster up: TARGET=local, kubernetes or slurm (docs/deploy.md)

undeploy: undeploy-$(or $(TARGET),local) ## Take it down again

deploy-local: $(if $(DRY_RUN),show-local,run)
	@true # a rule of its own, or the pattern below would claim it

show-local:
	@echo "make run: etcd, the services and two devices on loopback, until Ctrl-C"

undeploy-local:
	@echo "a local cluster ends with Ctrl-C of its make run"

# OVERLAY=cpu|gpu-8|gpu-128, REGISTRY, TAG, CONTEXT, BUILD=0, SMOKE=0, DRY_RUN=1: docs/deploy.md
KUBERNETES_OPTIONS = \
	$(if $(OVERLAY),--overlay=$(OVERLAY)) $(if $(REGISTRY),--registry=$(REGISTRY)) \
	$(if $(TAG),--tag=$(TAG)) $(if $(CONTEXT),--context=$(CONTEXT)) \
	$(if $(BUILD),--build=$(BUILD)) $(if $(SMOKE),--smoke=$(SMOKE)) \
	$(if $(DRY_RUN),--dry-run)

deploy-kubernetes: setup
	@$(BIN)/python -m deploy.kubernetes up $(KUBERNETES_OPTIONS)

undeploy-kubernetes: setup
	@$(BIN)/python -m deploy.kubernetes down $(KUBERNETES_OPTIONS)

# What docs/deploy.md lists for Slurm; fields of deploy/slurm/settings.py.
SLURM_OPTIONS = \
	$(if $(NODES),--nodes=$(NODES)) $(if $(GPUS),--gpus-per-node=$(GPUS)) \
	$(if $(DEVICES),--devices-per-node=$(DEVICES)) $(if $(DEVICE_KIND),--device-kind=$(DEVICE_KIND)) \
	$(if $(PARTITION),--partition=$(PARTITION)) $(if $(ACCOUNT),--account=$(ACCOUNT)) \
	$(if $(TIME),--time=$(TIME)) $(if $(MARGIN),--margin-seconds=$(MARGIN)) \
	$(if $(RUN_DIR),--run-dir=$(RUN_DIR)) $(if $(ETCD),--etcd-endpoints=$(ETCD)) $(if $(CERTS),--certificates=$(CERTS)) \
	$(if $(REWARD_ROOTS),--reward-roots=$(REWARD_ROOTS)) $(if $(DRY_RUN),--dry-run=1) \
	$(if $(EXCLUSIVE),--exclusive=$(EXCLUSIVE)) \
	$(if $(SBATCH_OPTIONS),--sbatch-options='$(SBATCH_OPTIONS)') \
	$(if $(SRUN_OPTIONS),--srun-options='$(SRUN_OPTIONS)')

deploy-slurm: setup
	@$(BIN)/python -m deploy.slurm up $(SLURM_OPTIONS)

undeploy-slurm: setup
	@$(BIN)/python -m deploy.slurm down $(if $(RUN_DIR),--run-dir=$(RUN_DIR))

deploy-% undeploy-%:
	@echo "TARGET=$* is unknown; there are local, kubernetes and slurm (docs/deploy.md)" >&2; exit 2

clean: ## Remove what runs left behind; keeps the environment
	rm -rf run demo-report.json build dist *.egg-info common/*.egg-info
