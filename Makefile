# Everything that people and CI run. `make` alone lists the targets.

# The first of these that is Python 3.11.
PYTHON ?= $(shell for name in python3.11 python3 python; do \
  $$name -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null && echo $$name && break; done)
HOST ?= 127.0.0.1
PORT ?= 3000
N ?= 3

# BentoML reports its use to its makers unless told not to.
export BENTOML_DO_NOT_TRACK := True

BIN := .venv/bin

# Hashes, and no index address: the lock is the same wherever it is used.
COMPILE := $(BIN)/uv pip compile pyproject.toml --quiet --python-version 3.11 --python-platform linux --generate-hashes \
  --no-strip-extras --no-emit-index-url --no-header --no-annotate

# Extras of pyproject.toml, each with a lock; requirements/dev.txt has all of them.
SETS := training monitoring loadtest postgresql tracing access

NO_MODEL := 3
TRAIN_IF_NONE := $(BIN)/python -c "import sys; from tabserve import model_store; \
  sys.exit(0 if model_store.stored_models() else $(NO_MODEL))" || { [ $$? -eq $(NO_MODEL) ] && \
  echo "training the built-in model, the model store has none" && $(BIN)/python train.py; }

.DEFAULT_GOAL := help

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1|/' | while IFS='|' read -r t d; do printf '  make %-12s %s\n' "$$t" "$$d"; done

.PHONY: serve
serve: .venv/training.installed ## install, train if there is no model yet, serve on http://127.0.0.1:3000 (HOST=, PORT=)
	@$(TRAIN_IF_NONE)
	@echo "serving on http://$(HOST):$(PORT), pages at /docs; Ctrl-C ends it"
	@BENTOML_CONFIG="$(CURDIR)/configuration.yaml" exec $(BIN)/bentoml serve --host $(HOST) --port $(PORT)

.PHONY: fleet
fleet: .venv/training.installed .venv/loadtest.installed ## N=3 replicas behind nginx on http://127.0.0.1:3000 (PORT=)
	@$(TRAIN_IF_NONE)
	@exec $(BIN)/python -m loadtest.fleet --replicas $(N) --port $(PORT)

.PHONY: demo
demo: .venv/training.installed .venv/loadtest.installed .venv/monitoring.installed ## service, monitor and alerts on this machine; traffic that drifts; what rang (3 minutes)
	@$(BIN)/python -m monitoring.demo

.PHONY: train
train: .venv/training.installed ## train the built-in model (another table: .venv/bin/python train.py --data FILE --target COLUMN)
	@$(BIN)/python train.py

.PHONY: test
test: .venv/dev.installed ## install what is missing and run the tests, but those of deploy/ (check-deploy) and of the image (test-image)
	@$(BIN)/pytest --numprocesses 2 --dist loadfile -m "not alone and not deploy and not image"
	@$(BIN)/pytest -m alone

.PHONY: check-deploy
check-deploy: .venv/dev.installed .venv-deploy/installed ## manifests, compose stack, releases, workflows (3 minutes; needs kubectl, nginx, prometheus and openssl)
	@$(BIN)/pytest -m deploy tests/deploy

.PHONY: fuzz
fuzz: .venv/dev.installed ## schemathesis against the OpenAPI page of three models, and with keys, 1000 examples an operation (25 minutes)
	@FUZZ_EXAMPLES=1000 $(BIN)/pytest -s tests/test_fuzz.py

.PHONY: check
check: .venv/dev.installed ## ruff, format and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

.PHONY: format
format: .venv/dev.installed ## mend what ruff can mend
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

.PHONY: build
build: .venv/training.installed ## train if there is no model yet, and build the Bento
	@$(TRAIN_IF_NONE)
	@$(BIN)/python -m deploy.image.build --bento

.PHONY: image
image: .venv/training.installed ## the same, and an image of it, by docker, podman or buildah (IMAGE_FLAGS=--backend=podman)
	@$(TRAIN_IF_NONE)
	@$(BIN)/python -m deploy.image.build $(IMAGE_FLAGS)

.PHONY: image-tools
image-tools: .venv/training.installed ## the image for scheduled jobs: monitoring, training, load tests
	@$(BIN)/python -m deploy.image.build --tools $(IMAGE_FLAGS)

.PHONY: test-image
test-image: .venv/dev.installed ## build both images on a base of Debian's packages, run them hardened (5 minutes, root)
	@$(BIN)/pytest -m image tests/image

.PHONY: bench
bench: .venv/training.installed .venv/loadtest.installed ## measure beside the alternatives, write docs/benchmarks.md (20 minutes)
	@$(BIN)/python -m loadtest.benchmark --write

.PHONY: soak
soak: .venv/training.installed .venv/loadtest.installed ## 70 % load for ten times traffic.timeout, write docs/benchmarks.md (3 minutes)
	@$(BIN)/python -m loadtest.benchmark.soak --write

.PHONY: capacity
capacity: .venv/training.installed .venv/loadtest.installed ## the highest rate within the objectives, and the replicas for others (10 minutes)
	@$(BIN)/python -m loadtest.benchmark.capacity --write

.PHONY: lock
lock: .venv/dev.installed ## resolve the locks after a change of pyproject.toml: all together, then each set from that
	@$(COMPILE) --all-extras --output-file requirements/dev.txt
	@$(COMPILE) --constraint requirements/dev.txt --output-file requirements.txt
	@$(BIN)/uv pip compile requirements/deploy.in --quiet --python-version 3.11 --python-platform linux --generate-hashes \
	  --no-emit-index-url --no-header --no-annotate --output-file requirements/deploy.txt
	@for set in $(SETS); do \
	  $(COMPILE) --constraint requirements/dev.txt --extra $$set --output-file requirements/$$set.txt; done

# One virtual environment; a mark for each set of packages in it, newer than its lock when it is installed.
.venv/%.installed: requirements/%.txt | .venv/bin/python
	@echo "installing $< into .venv (a minute or two, the first time)"
	@$(BIN)/pip install -qq --disable-pip-version-check --no-deps --require-hashes -r $<
	@touch $@ $(if $(filter dev,$*),$(SETS:%=.venv/%.installed))

# checkov and others that look at manifests pin what they need, and not what we do: an environment of their own.
.venv-deploy/installed: requirements/deploy.txt | .venv/bin/python
	@echo "installing $< into .venv-deploy (a minute or two, the first time)"
	@$(BIN)/python -m venv .venv-deploy
	@.venv-deploy/bin/pip install -qq --disable-pip-version-check --no-deps --require-hashes -r $<
	@touch $@

.venv/bin/python:
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null || { \
	  echo "tabserve needs Python 3.11, $(or $(PYTHON),the python3 here) is not: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11"; exit 2; }
	@echo "making the virtual environment .venv"
	@"$(PYTHON)" -m venv .venv || { rm -rf .venv; \
	  echo "no virtual environment could be made; on Debian and Ubuntu: apt-get install python3.11-venv"; exit 2; }
