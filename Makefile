# ML Workbench: every target sets up what it needs; a second run starts at once.
#
#   PYTHON           the interpreter to build .venv with (3.11 to 3.14); found by itself unless named
#   PIP_FIND_LINKS   a folder or page of wheels to prefer, such as a CPU build of torch (docs/setup.md)
#   ARGS             further arguments of `make test`, `make test-more`, `make evaluate`, `make chaos`, `make soak`,
#                    `make fuzz`

.DEFAULT_GOAL := help
SHELL := /bin/sh

PYTHON ?= $(shell for python in python3 python3.12 python3.13 python3.14 python3.11; do \
	$$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' 2>/dev/null \
	&& echo $$python && break; done)

VENV := .venv
BIN := $(VENV)/bin
TOOLS := .bench/lock-tools
SBOM_TOOLS := .bench/sbom-tools

# Compiled modules are kept even where the environment says otherwise: each worker, and each of the many processes of the
# tests, would compile torch anew, which takes seconds.
export PYTHONDONTWRITEBYTECODE :=

# uv installs in seconds what takes pip minutes. It does not read pip's settings, so the folder of wheels is passed on.
# It verifies the hashes that the lock has. Where uv cannot be installed, or cannot reach what pip can, pip does the work;
# where a file has another hash than it should, nobody does.
define install
	@echo "installing $(1) into $(VENV)"
	@links=$$(printf '%s' "$${UV_FIND_LINKS:-$$PIP_FIND_LINKS}" | tr ' ' ','); \
	if [ -n "$$links" ]; then UV_FIND_LINKS="$$links"; export UV_FIND_LINKS; fi; \
	$(BIN)/uv pip install --quiet --python $(BIN)/python -r $(1:.txt=-hashed.txt) 2> $(VENV)/uv-said && exit 0; \
	cat $(VENV)/uv-said >&2; \
	if grep -qi "hash mismatch" $(VENV)/uv-said; then \
	echo "a package is not the one that poetry.lock knows: nothing more was installed; see which index it came from" >&2; exit 1; fi; \
	echo "uv could not install $(1); trying pip, which takes minutes"; \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r $(1)
endef

.PHONY: help setup serve test test-more test-portable lint format bench evaluate chaos soak fuzz figures screenshots backup restore gpu-check lock sbom clean

help: ## this list
	@grep -hE '^[a-z-]+:.*##' Makefile | sed -E 's/:[^#]*## /\t/' | expand -t 15

setup: $(VENV)/.installed $(VENV)/.installed-dev ## virtual environment and packages, nothing else

serve: $(VENV)/.installed ## start the service; PORT, API_KEY … as in the README
	@exec $(BIN)/python -m ml_workbench_service.main

test: $(VENV)/.installed-dev ## run the tests; ARGS="-k story" runs some
	@$(BIN)/python -m pytest -m "not more" --numprocesses=auto --dist=loadfile $(ARGS)

test-more: $(VENV)/.installed-dev ## the rest of the tests: plug-in packages, short forms of the studies, cross-checks
	@$(BIN)/python -m pytest -m more --numprocesses=auto --dist=loadfile $(ARGS)

test-portable: $(VENV)/.installed-dev ## tests of bits and tolerances as a processor without AVX-512 and VNNI (qemu-user)
	@$(BIN)/python -m tools.test_portable $(ARGS)

lint: $(VENV)/.installed-dev ## style, types, floors, and that the requirements equal the lock
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python -m tools.check_lock

format: $(VENV)/.installed-dev ## let ruff put the code in order
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: $(VENV)/.installed-dev ## all benchmarks beside their peers (benchmarks/README.md)
	@$(BIN)/python -m benchmarks

evaluate: $(VENV)/.installed-dev ## how often verdicts are wrong where the truth is known; writes docs/evaluation.md
	@$(BIN)/python -m studies $(ARGS)

chaos: $(VENV)/.installed-dev ## faults against the promises of the queue (ARGS="--runs 3 --only redis_killed"), kills at every step, what is outside failing
	@$(BIN)/python -m chaos $(ARGS)
	@$(BIN)/python -m chaos.kill_sweep
	@$(BIN)/python -m chaos.dependencies

soak: $(VENV)/.installed-dev ## half an hour of mixed load while something fails every 20 s; ARGS="--minutes 10"
	@$(BIN)/python -m chaos.soak $(ARGS)

fuzz: $(VENV)/.installed-dev ## random bytes in a real state's files (ARGS="--cases 500"), in every parser, and through every route
	@$(BIN)/python -m chaos.damage $(ARGS)
	@$(BIN)/python -m chaos.parsers
	@$(BIN)/python -m chaos.document

figures: $(VENV)/.installed-dev ## the pictures of docs/figures.md, drawn anew (needs chromium)
	@FIGURES_GALLERY=docs/images $(BIN)/python -m pytest -m more tests/figures/test_rendered.py -k documents $(ARGS)

screenshots: $(VENV)/.installed-dev ## every view of a running service's page, light and dark, wide and narrow; URL=http://127.0.0.1:8006
	@$(BIN)/python -m tools.screenshots $(or $(URL),http://127.0.0.1:8006) $(or $(TARGET),.bench/screenshots)

backup: $(VENV)/.installed ## one verified archive of a running service; TARGET=backups/today.tar.gz
	@test -n "$(TARGET)" || { echo "name the archive: make backup TARGET=backups/today.tar.gz"; exit 1; }
	@$(BIN)/python -m tools.backup create "$(TARGET)"

restore: $(VENV)/.installed ## an archive into an empty STATE_DIR and registry; ARCHIVE=backups/today.tar.gz
	@test -n "$(ARCHIVE)" || { echo "name the archive: make restore ARCHIVE=backups/today.tar.gz"; exit 1; }
	@$(BIN)/python -m tools.backup restore "$(ARCHIVE)"

gpu-check: $(VENV)/.installed-dev ## every family on CUDA beside the processor; says so where there is no GPU
	@$(BIN)/python -m tools.gpu_check

lock: $(TOOLS)/.installed ## renew poetry.lock and the requirements files from pyproject.toml
	@$(TOOLS)/bin/poetry lock
	@$(BIN)/python -m tools.export_requirements $(TOOLS)/bin/poetry
	@$(BIN)/python -m tools.hash_requirements
	@$(BIN)/python -m tools.check_lock

sbom: $(SBOM_TOOLS)/.installed ## what is installed, as a bill of materials (CycloneDX, sbom.json), and its licences
	@$(SBOM_TOOLS)/bin/cyclonedx-py environment --output-reproducible --output-file sbom.json $(BIN)/python
	@$(SBOM_TOOLS)/bin/pip-licenses --python=$(BIN)/python --order=license $(ARGS)

clean: ## remove the environments and caches; models, jobs and logs stay
	rm -rf $(VENV) .bench .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.made:
	@test -n "$(PYTHON)" || { \
	echo "ML Workbench needs Python 3.11 to 3.14, and none is on the PATH; install one, or name it: make PYTHON=/path/to/python3.12"; exit 1; }
	@$(PYTHON) tools/make_venv.py $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv || echo "uv cannot be installed here"
	@touch $@

$(VENV)/.installed: requirements.txt requirements-hashed.txt | $(VENV)/.made
	$(call install,requirements.txt)
	@touch $@

$(VENV)/.installed-dev: requirements-dev.txt requirements-dev-hashed.txt | $(VENV)/.made
	$(call install,requirements-dev.txt)
	@touch $@

$(SBOM_TOOLS)/.installed: | $(VENV)/.installed
	@$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(SBOM_TOOLS)
	@$(BIN)/uv pip install --quiet --python $(SBOM_TOOLS)/bin/python "cyclonedx-bom>=7.5,<8" "pip-licenses>=5.5,<6"
	@touch $@

$(TOOLS)/.installed: | $(VENV)/.installed-dev
	@$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(TOOLS)
	@$(BIN)/uv pip install --quiet --python $(TOOLS)/bin/python "poetry>=2.5,<3" poetry-plugin-export \
	$${POETRY_PYPI_MIRROR_URL:+poetry-plugin-pypi-mirror}
	@touch $@
