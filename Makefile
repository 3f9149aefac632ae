.DEFAULT_GOAL := help
SHELL := /bin/bash
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export MLFLOW_DISABLE_TELEMETRY := true
# Bytecode is written where a module is first imported. Compiling every package at set-up would take longer than the rest
# of it; leaving it out altogether doubles the time of each stage.
unexport PYTHONDONTWRITEBYTECODE

READY := .venv/.ready
UV := 0.13.9
PORT ?= 5000
TORTURE := tests/test_torture.py tests/test_fuzz_csv.py tests/test_fuzz_settings.py tests/test_sync.py
STORE := $(or $(MLFLOW_TRACKING_URI),sqlite:///$(CURDIR)/mlflow.db)

.PHONY: help setup repro test torture check audit ui bench lock

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## make .venv with everything in it; the other targets do this by themselves

# torch comes by pip, because its build (CPU, CUDA) depends on the machine; all the rest is checked against its hash.
# The project goes in last, as a link to src. uv is told where to, since it would follow an environment that is active.
$(READY): requirements.lock pyproject.toml
	@python3 -c 'import sys; sys.exit(sys.version_info < (3, 11) and "truefit needs Python 3.11 or later")'
	@echo "Setting up .venv; the largest download is torch."
	python3 -m venv .venv
	.venv/bin/pip install --quiet --disable-pip-version-check uv==$(UV)
	.venv/bin/uv pip install --quiet --python .venv/bin/python --require-hashes -r requirements.lock
	.venv/bin/pip install --quiet --no-compile --disable-pip-version-check "$$(grep -o 'torch==[0-9.]*' pyproject.toml)"
	.venv/bin/uv pip install --quiet --python .venv/bin/python --no-deps --no-build-isolation --editable .
	touch $@

repro: $(READY) ## run the pipeline: what changed since the last run, and nothing else
	dvc repro

test: $(READY) ## run the tests
	pytest -n 2 --dist loadgroup

torture: $(READY) ## kill, starve and feed rubbish at length: 25 random kills and more, thousands of mutations
	TRUEFIT_TORTURE=1 pytest -n 2 --dist loadgroup -rA $(TORTURE)

check: $(READY) ## check style, types, the direction of imports, and the documents
	ruff format --check .
	ruff check .
	mypy
	lint-imports
	python tools/check_docs.py

# --strict: a package that the service does not know, or does not answer for, is a failure. torch is not in the list.
audit: $(READY) ## ask the advisory database for known vulnerabilities of the packages in requirements.lock; needs the network
	pip-audit --strict --require-hashes --disable-pip --progress-spinner off --requirement requirements.lock

ui: $(READY) ## open the MLflow UI on http://127.0.0.1:5000 (another port: make ui PORT=5001)
	@case "$(STORE)" in http*) echo "MLFLOW_TRACKING_URI names a server; its UI is at that address."; exit 2;; esac
	MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false mlflow ui --host 127.0.0.1 --port $(PORT) --workers 1 \
		--backend-store-uri "$(STORE)" --default-artifact-root "file://$(CURDIR)/mlartifacts"

bench: $(READY) ## time an epoch from the file against one from memory, and a training with its server against one without
	python benchmarks/loader.py
	python benchmarks/outage.py

lock: $(READY) ## renew requirements.lock
	uv pip compile --quiet --upgrade --universal --python-version 3.11 --group dev --generate-hashes --no-annotate \
		--no-emit-package torch --custom-compile-command "make lock" pyproject.toml --output-file requirements.lock
