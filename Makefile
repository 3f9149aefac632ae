.DEFAULT_GOAL := help
SHELL := /bin/bash
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export MLFLOW_DISABLE_TELEMETRY := true
# Bytecode is written where a module is first imported. Compiling every package at set-up would take longer than the rest
# of it; leaving it out altogether doubles the time of each stage.
unexport PYTHONDONTWRITEBYTECODE

READY := .venv/.ready
TEAM_READY := .venv/.team
SERVICES_READY := .venv/.services
VEGA := dvc_plots/vega.js
BENCH_READY := .venv-bench/.ready
UV := 0.13.9
PORT ?= 5000
TORTURE := tests/services tests/test_torture.py tests/training/test_group.py tests/training/test_random_settings.py tests/training/test_launch.py \
	tests/training/test_hosts.py tests/test_two_hosts.py tests/cli/test_join.py tests/cli/test_predict_hosts.py tests/core/test_lent_workers.py tests/ingest/test_part_hosts.py tests/ingest/test_fuzz_csv.py tests/ingest/test_fuzz_kinds.py \
	tests/ingest/test_csv_arrow.py tests/core/test_fuzz_settings.py tests/tracking/test_sync.py tests/rerun/test_rerun.py tests/model/test_serving.py tests/ui/test_grid.py

.PHONY: help setup team services repro test torture check docs audit ui screenshots bench bench-scale lock

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) $(VEGA) ## make .venv with everything in it; the other targets do this by themselves

# torch comes by pip, because its build (CPU, CUDA) depends on the machine; all the rest is checked against its hash.
# The project goes in last, as a link to src. uv is told where to, since it would follow an environment that is active.
# The lists are whole but for torch, so no dependency is looked for. $(1) is the environment's folder, $(2) its lists.
define environment
	@python3 -c 'import sys; sys.exit(sys.version_info < (3, 11) and "truefit needs Python 3.11 or later")'
	@echo "Setting up $(1); the largest download is torch."
	python3 -m venv $(1)
	$(1)/bin/pip install --quiet --disable-pip-version-check uv==$(UV)
	$(1)/bin/uv pip install --quiet --python $(1)/bin/python --no-deps --require-hashes $(addprefix -r ,$(2))
	$(1)/bin/pip install --quiet --no-compile --disable-pip-version-check "$$(grep -o 'torch==[0-9.]*' pyproject.toml)"
	$(1)/bin/uv pip install --quiet --python $(1)/bin/python --no-deps --no-build-isolation --editable .
	touch $(1)/.ready
endef

$(READY): requirements.lock pyproject.toml
	$(call environment,.venv,requirements.lock)

# More packages for .venv, from the list $(1).
define packages
	.venv/bin/uv pip install --quiet --python .venv/bin/python --no-deps --require-hashes --requirement $(1)
	touch $@
endef

team: $(TEAM_READY) $(VEGA) ## make setup, and what a team's server and data need: PostgreSQL, S3, ssh (docs/team.md)

$(TEAM_READY): $(READY) requirements-team.lock
	$(call packages,requirements-team.lock)

services: $(SERVICES_READY) ## make team, and what the tests of real services need; beside it, Debian's postgresql and openssh-server

$(SERVICES_READY): $(TEAM_READY) tests/services/requirements.lock
	$(call packages,tests/services/requirements.lock)

# Draws the page of `dvc plots`, whose templates are written for version 5 of Vega-Lite.
$(VEGA): $(READY)
	mkdir -p $(@D)
	python -c 'import pathlib, vl_convert; pathlib.Path("$@").write_text(vl_convert.javascript_bundle(vl_version="5.21"), "utf-8")'

$(BENCH_READY): requirements.lock benchmarks/requirements.lock pyproject.toml
	$(call environment,.venv-bench,requirements.lock benchmarks/requirements.lock)

repro: $(READY) $(VEGA) ## run the pipeline: what changed since the last run, and nothing else
	dvc repro

# Three workers on two cores, since some tests wait: for a time-out, a link that is down, a server.
test: $(READY) ## run the tests
	pytest -n 3 --dist loadgroup

torture: $(READY) ## kill, starve, feed rubbish and run again at length: 25 random kills and more, thousands of mutations, two dozen reruns, 200 random trainings, 16 at once, a grid, five million predictions
	TRUEFIT_TORTURE=1 pytest -n 2 --dist loadgroup -rA $(TORTURE)

check: $(READY) ## check style, types, the direction of imports, and the documents
	ruff format --check .
	ruff check .
	mypy
	lint-imports
	python tools/check_docs.py

# A warning is an error: a link that leads nowhere, a page that the README's lists do not name. Links to other sites stay unasked.
docs: $(READY) ## make the site of the documents, docs/_build/index.html
	sphinx-build --quiet --no-color --fresh-env --nitpicky --fail-on-warning -c docs . docs/_build
	@echo "docs/_build/index.html"

# --strict: a package that the service does not know, or does not answer for, is a failure. torch is not in the list.
audit: $(READY) ## ask the advisory database for known vulnerabilities of the packages in requirements.lock and requirements-team.lock; needs the network
	pip-audit --strict --require-hashes --disable-pip --progress-spinner off --requirement requirements.lock --requirement requirements-team.lock

# The store's address goes by the environment: it may hold a password, and make prints the line, as ps does.
ui: $(READY) ## open the MLflow UI on http://127.0.0.1:5000 (another port: make ui PORT=5001)
	@case "$$MLFLOW_TRACKING_URI" in [Hh][Tt][Tt][Pp]*) \
		echo "MLFLOW_TRACKING_URI names a server; its UI is at that address."; exit 2;; esac
	MLFLOW_BACKEND_STORE_URI="$${MLFLOW_TRACKING_URI:-sqlite:///$(CURDIR)/mlflow.db}" MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false \
		mlflow ui --host 127.0.0.1 --port $(PORT) --workers 1 --default-artifact-root "file://$(CURDIR)/mlartifacts"

screenshots: $(READY) ## take the documents' pictures of the MLflow UI anew; needs chromium
	TRUEFIT_BROWSER=required TRUEFIT_SCREENSHOTS=$(CURDIR)/docs/images pytest tests/ui

bench bench-scale: export PATH := $(CURDIR)/.venv-bench/bin:$(PATH)
bench: $(BENCH_READY) ## time it all against the peers (half an hour on a quiet machine); writes results.json, the tables of docs/benchmarks.md, a picture
	for name in throughput loader stages categories pipeline outage processes report; do python benchmarks/$$name.py || exit 1; done

bench-scale: $(BENCH_READY) ## time and memory of each stage from 0.2M to 50M rows; 10 GB of disk, elsewhere with SCALE_DIR=…
	python benchmarks/scale.py $(if $(SCALE_DIR),--folder $(SCALE_DIR))
	python benchmarks/report.py

# requirements-team.lock has what requirements.lock does not have.
lock: $(READY) ## renew requirements.lock, and the lists of the team, the services and the benchmarks with the same versions
	uv pip compile --quiet --upgrade --universal --python-version 3.11 --group dev --generate-hashes --no-annotate \
		--no-emit-package torch --custom-compile-command "make lock" pyproject.toml --output-file requirements.lock
	uv pip compile --quiet --upgrade --universal --python-version 3.11 --group bench --generate-hashes --no-annotate \
		--no-emit-package torch --constraint requirements.lock --custom-compile-command "make lock" \
		--output-file benchmarks/requirements.lock
	uv pip compile --quiet --upgrade --universal --python-version 3.11 --extra team --generate-hashes --no-annotate \
		$$(sed -n 's/^\([A-Za-z0-9._-]*\)==.*/--no-emit-package \1/p' requirements.lock) --no-emit-package torch \
		--constraint requirements.lock --custom-compile-command "make lock" pyproject.toml --output-file requirements-team.lock
	uv pip compile --quiet --upgrade --universal --python-version 3.11 --group services --generate-hashes --no-annotate \
		--custom-compile-command "make lock" --output-file tests/services/requirements.lock
