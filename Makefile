# Every target sets up what it needs, in a virtual environment of its own; `make` alone lists them.
# Another Python, without the semantic tier:  make test PYTHON=python3.13 VENV=.venv313 EXTRAS=compress,cli

PYTHON ?= python3
VENV ?= .venv
EXTRAS ?= semantic,offline,compress,cli,report,sidecar
# The extra with the tools: `dev`, or `test` where only tests are run.
TOOLS ?= dev
# Files or folders, instead of all tests:  make test TESTS=tests/tiers
TESTS =
# How long `make soak` loads a sidecar, and which of its parts it runs: interface, decoders, load.
SOAK_SECONDS ?= 600
PARTS =
# Handed to pytest:  make test ARGS='-k disk -x'; and to the demo:  make serve-demo ARGS='--port 8500'
# The tests run in a process for each core and one more, eight at most; in one, with --pdb for example:  make test ARGS='-n 0 --pdb'
ARGS =

SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

comma := ,
extras := $(subst $(comma), ,$(EXTRAS))
bin := $(VENV)/bin
pip := $(bin)/python -m pip --disable-pip-version-check
constraints := .ci/constraints-cpu.txt
torch_index := https://download.pytorch.org/whl/cpu
traffic := examples/traffic/support.jsonl

# `offline` is here too: its package requires sentence-transformers, which requires torch.
needs_torch := $(filter semantic gpu offline all,$(extras))
has_semantic := $(filter semantic gpu all,$(extras))
has_report := $(filter report all,$(extras))
ifneq ($(and $(filter gpu,$(extras)),$(filter semantic all,$(extras))),)
$(error EXTRAS: `gpu` stands instead of `semantic` and `all`, never beside them)
endif
marks := $(if $(filter gpu,$(extras)),,$(if $(has_semantic),not gpu,not semantic and not gpu))

# Stamps name what they stand for: with other EXTRAS the install runs again, on top of what is there.
made := $(VENV)/.stamp-made
torch := $(VENV)/.stamp-torch
installed := $(VENV)/.stamp-installed-$(subst $(comma),-,$(EXTRAS))$(if $(filter-out dev,$(TOOLS)),-$(TOOLS))
bench_installed := $(installed)-bench
system_installed := $(installed)-system
# Not compiled: thousands of modules are never imported, and the others compile themselves.
install = $(pip) install --no-compile -c $(constraints) -e ".[$(if $(EXTRAS),$(EXTRAS)$(comma))$(1)]"

# Tests of one xdist_group stay together, and come first; any other goes to whichever process is free.
# They wait for servers and clocks half of their time: one process more than there are cores.
processes := $(shell cores=$$(nproc 2>/dev/null || echo 2); [ $$cores -lt 8 ] && echo $$((cores + 1)) || echo 8)
in_parallel := -n $(processes) --dist loadgroup

with_oldest := VENV=.venv-oldest EXTRAS=openai,anthropic TOOLS=test constraints=.venv-oldest/oldest.txt

# The tests start hundreds of Pythons: what the first has compiled is there for the others, whatever the environment says.
compiled := PYTHONDONTWRITEBYTECODE=

quiet_hub := TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1

# Behind all else on the PATH, what `make servers` and `make programs` have put there.
export PATH := $(PATH):$(CURDIR)/.cache/servers/bin:$(CURDIR)/.cache/system/bin

.PHONY: help venv system-venv servers programs test test-system oldest oldest-venv soak soak-parts demo serve-demo bench lint types pyright layers docs check clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 16

venv: $(installed) ## the virtual environment, with EXTRAS and the tools of development

servers: ## redis-server and memcached for the tests: from the PATH, else unpacked into .cache/servers
	@.ci/servers

programs: ## Chromium, Prometheus and Node for `make test-system`: from the PATH, else unpacked into .cache/system
	@PYTHON=$(PYTHON) .ci/servers system

test: $(installed) servers ## the tests; without the extra `semantic`, all that do not need it
	$(quiet_hub) $(compiled) $(bin)/python -m pytest $(in_parallel) -m "$(marks)" $(TESTS) $(ARGS)

test-system: $(system_installed) servers programs ## the sidecar among real programs: a browser, Node's clients, curl, Prometheus
	$(quiet_hub) $(compiled) $(bin)/python -m pytest $(in_parallel) -m system $(or $(TESTS),tests/system) $(ARGS)

oldest: ## the clients' tests with the oldest SDKs that pyproject.toml allows (with Python 3.11 or 3.12)
	@$(MAKE) test $(with_oldest) TESTS=tests/clients

system-venv: $(system_installed)

oldest-venv:
	@$(MAKE) venv $(with_oldest)

soak: ## fuzz the sidecar's interface and its decoders, then load it for SOAK_SECONDS (600); PARTS='decoders load'
	@$(MAKE) soak-parts VENV=.venv-soak EXTRAS=sidecar,cli TOOLS=soak

soak-parts: $(installed)
	SOAK_SECONDS=$(SOAK_SECONDS) $(bin)/python tests/soak/run.py $(PARTS)

demo: $(installed) ## replay a support desk's requests through memory, disk and near matches; writes report.html
	@$(quiet_hub) $(bin)/semcache replay $(traffic) $(if $(has_semantic),--policy threshold:0.9,--no-semantic) $(if $(has_report),--report report.html)
	@$(if $(has_report),echo "  Charts$(comma) and both texts of each wrong hit: $(CURDIR)/report.html",:)

serve-demo: $(installed) ## a sidecar with its dashboard, in front of a stand-in, with that traffic until Ctrl-C; ARGS='--port 8500'
	@$(quiet_hub) $(bin)/python examples/serve_demo.py $(if $(has_semantic),,--no-embedder) $(ARGS)

bench: $(bench_installed) servers ## benchmarks: ratios to benchmarks/out/, a table to benchmarks/RESULTS.md
	$(quiet_hub) $(bin)/python benchmarks/run.py

lint: $(installed) ## ruff: rules and formatting
	$(bin)/ruff check .
	$(bin)/ruff format --check .

types: $(installed) ## mypy --strict
	$(bin)/mypy

pyright: $(installed) ## pyright on the examples, as a user's editor sees them (fetches itself from npm)
	$(bin)/pyright --pythonpath $(bin)/python

layers: $(installed) ## import-linter: each layer imports only from those below it
	$(bin)/lint-imports --no-logo

docs: $(installed) ## run the examples in README, docs and docstrings
	$(quiet_hub) $(bin)/python -m pytest -q tests/test_docs.py

check: lint types layers docs ## lint, types, layers and docs

clean: ## remove caches and build output; virtual environments stay
	rm -rf .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis .benchmarks .cache
	rm -rf build dist benchmarks/out report.html *.egg-info
	find semcache tests benchmarks examples -type d -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true

$(made):
	@command -v $(PYTHON) >/dev/null || { echo "make: no $(PYTHON) here; name one, 3.11 or newer: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "make: semcache needs Python 3.11 or newer, and $(PYTHON) is $$($(PYTHON) -V 2>&1 | head -n 1); name another: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { \
		echo "make: $(PYTHON) cannot make virtual environments; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@touch $@

$(VENV)/oldest.txt: $(made) pyproject.toml .ci/oldest.py
	$(bin)/python .ci/oldest.py $(extras) >$@

# PyTorch's own index has the CPU build: one try of ten seconds (what torch needs comes with the next install), then
# the default index with the same pin. For `gpu` the default index has the right build.
$(torch): $(made) $(constraints)
ifeq ($(filter gpu,$(extras)),)
	@echo "PyTorch, CPU build, from $(torch_index)"
	@$(pip) install --no-compile --retries 0 --timeout 10 --no-deps --index-url $(torch_index) -c $(constraints) torch 2>/dev/null || { \
		echo "make: not to be had there; taking the same version from the default index (on Linux with CUDA, which is large)" >&2; \
		$(pip) install --no-compile -c $(constraints) torch; }
else
	$(pip) install --no-compile -c $(constraints) torch
endif
	@touch $@

$(installed): $(made) $(if $(needs_torch),$(torch)) $(constraints) pyproject.toml
	$(call install,$(TOOLS))
	@touch $@

$(system_installed): $(installed)
	$(call install,$(TOOLS)$(comma)system)
	@touch $@

$(bench_installed): $(installed)
	$(call install,$(TOOLS)$(comma)bench)
	@touch $@
