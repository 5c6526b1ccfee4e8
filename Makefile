# `make repro` and `make test` work in a fresh clone: each target does the set-up it needs, once.
# PYTHON=... picks the Python (3.11 or newer) that .venv is made from.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c

VENV := .venv
READY := $(VENV)/.ready
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check --no-input --quiet
AUDIT := $(VENV)/audit
TORCH := 2.13.0
PRESETS := $(patsubst presets/%.yaml,%,$(wildcard presets/*.yaml))
PYTEST_ARGS ?=
# The tests use one core each; a file's stay together, as they share models.
AT_ONCE := -n auto --maxprocesses=8 --dist loadfile
# What test-cpus runs: tests of numbers that the processor's rounding moves, wherever they stand.
CPU_TESTS := -m rounding
FUZZ_SECONDS ?= 300
FILE ?= units.parquet

# DVC runs the stages' `python`: it has to be the one in .venv.
OUTER_PATH := $(PATH)
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

.PHONY: help setup repro maps essence table scaling robustness override default-run second-model counterfact reference compare readme status prune export-units import-units test test-page test-slow test-cpus fuzz lint audit bench bench-gpu simulate clean

help:  ## what there is
	@echo "make TARGET, where TARGET is one of:"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1\t\2/p' Makefile | expand -t 16

setup: $(READY)  ## install everything into .venv, nothing more

repro: $(READY)  ## run what is not up to date; PRESET=NAME first copies presets/NAME.yaml over params.yaml
	@preset='$(PRESET)'; \
	if [ -n "$$preset" ]; then \
	  if [[ " $(PRESETS) " != *" $$preset "* ]]; then \
	    echo "error: PRESET is $$preset but must be one of: $(PRESETS)" >&2; exit 2; \
	  fi; \
	  known=no; for file in presets/*.yaml; do ! cmp -s "$$file" params.yaml || known=yes; done; \
	  if [ -f params.yaml ] && [ $$known = no ]; then \
	    cp params.yaml params.previous.yaml; \
	    echo "params.yaml was changed by hand; it is kept as params.previous.yaml"; \
	  fi; \
	  cp "presets/$$preset.yaml" params.yaml; \
	fi; \
	python -m stages.params params.yaml
	@python -m stages.mend
	@dvc repro

# The stages of measures/dvc.yaml, then the page where there is one: it shows what they made.
maps essence table scaling robustness override: $(READY)
	@python -m stages.mend
	@dvc repro measures/dvc.yaml:$@
	@if [ -f reports/report.html ]; then dvc repro report; else echo 'make repro makes the page that shows it'; fi

maps: ## average indirect effects by token role and layer, and the severed model
essence: ## what edits leave of what the model has to say of a subject
table: ## CounterFact's table: S, ES, EM, PS, PM, NS, NM, GE and RS of each method
scaling: ## many edits at once, and which layers share them
robustness: ## whether other traces, metrics and facts change the conclusion
override: ## edited models traced: does an edit override what sits elsewhere?

# A preset's run $(1) with the stages $(2) beside it. dvc.lock stays that of `make repro PRESET=default` alone: the other is
# put aside, and is still there where this was stopped.
define whole
	@[ -f dvc.lock.repro ] || cp dvc.lock dvc.lock.repro
	@$(MAKE) repro PRESET=$(1)
	@$(if $(2),$(MAKE) $(2))
	@mv dvc.lock.repro dvc.lock
endef

# Results of the run that make up reports/$(1): the tables $(2), the page, which has all figures in it, those in one width
# for report.md and the README, and the README's sentences about them.
define keep
	@rm -rf reports/$(1) && mkdir -p reports/$(1)/figures
	@cp params.yaml $(2) reports/{manifest.json,metrics.json,report.html,report.md} reports/$(1)/
	@find reports/figures -name '*.svg' ! -name '*-narrow.svg' -exec cp {} reports/$(1)/figures/ \;
	@python -m pipeline.report.readme
endef

MEASURES := maps table scaling robustness override essence

# Begins without tables, so that the page that dvc.lock speaks of is that of `make repro` in a fresh clone.
default-run: $(READY)  ## repro PRESET=default and all of measures/; keep their results in reports/default-run
	@$(MAKE) clean
	@$(MAKE) repro PRESET=default
	@cp dvc.lock dvc.lock.repro
	@$(MAKE) $(MEASURES)
	@mv dvc.lock.repro dvc.lock
	$(call keep,default-run,reports/*.csv)

# Without those that stages beside the main path may have left of another run.
MAIN_TABLES := $(patsubst %,reports/%.csv,collapse collapse_r2 correlation_by_layer fractional layers localizers \
  methods regressions reverse rewrite_by_layer scores_by_layer trace_by_layer trace_peaks)

second-model: $(READY)  ## repro PRESET=second-model; keep its small results in reports/second-model
	$(call whole,second-model)
	$(call keep,second-model,$(MAIN_TABLES))

counterfact: $(READY)  ## repro PRESET=counterfact and table; keep their small results in reports/counterfact
	$(call whole,counterfact,table)
	$(call keep,counterfact,$(MAIN_TABLES) reports/counterfact.csv reports/counterfact_layers.csv)

reference: $(READY)  ## the run that the README speaks of, all of measures/ too; keep its results in reports/reference
	@echo 'make reference: about 10 hours on two CPU cores, measured; about one on a GPU, estimated from counted operations; stop it at will, it goes on where it was'
	$(call whole,reference,$(MEASURES))
	$(call keep,reference,reports/*.csv)

compare: $(READY)  ## two runs' reports on one page, reports/compare.html: A=reports/default-run B=reports
	@python -m pipeline.report.compare '$(A)' '$(B)'

readme: $(READY)  ## the README's results, from the committed tables
	@python -m pipeline.report.readme

status: $(READY)  ## what is done, what is left, for how long, in how much space
	@python -m stages.status

prune: $(READY)  ## remove the results kept per fact that no current setting needs
	@python -m stages.status --prune

export-units: $(READY)  ## the store's finished units in FILE=..., to go on with the run on another machine
	@python -m stages.units export '$(FILE)'

import-units: $(READY)  ## take the finished units of FILE=... into the store
	@python -m stages.units import '$(FILE)'

test: $(READY)  ## the tests but the slow ones and the browser's; PYTEST_ARGS='-k rome' for some of them
	@python -m pytest -m 'not slow and not browser' $(AT_ONCE) $(PYTEST_ARGS)

test-page: $(READY)  ## the page in a headless Chromium, which it installs where it may (Debian, Ubuntu)
	@if ! command -v chromium >/dev/null; then \
	  root=''; [ "$$(id -u)" = 0 ] || root='sudo -n'; \
	  { $$root apt-get -qq update && $$root apt-get -qq install -y --no-install-recommends chromium; } >&2 || true; \
	fi; \
	if command -v chromium >/dev/null; then python -m pytest -m browser $(PYTEST_ARGS); \
	else echo "test-page: skipped, no chromium here and none could be installed (Debian: apt-get install chromium)"; fi

test-slow: $(READY)  ## the slow ones: real runs that are stopped, changed, and extended by a method
	@python -m pytest -m slow $(PYTEST_ARGS)

# torch says which instructions it would use by itself; it may be told to use lesser ones, and never better ones.
test-cpus: $(READY)  ## the tests that rounding touches, with each set of instructions that this processor has
	@ask='import torch; print(torch.backends.cpu.get_cpu_capability().lower())'; \
	best="$$(env -u ATEN_CPU_CAPABILITY python -c "$$ask")"; \
	case "$$best" in avx512*) cpus='default avx2 avx512';; avx2*) cpus='default avx2';; *) cpus=default;; esac; \
	failed=''; \
	for cpu in $$cpus; do \
	  export ATEN_CPU_CAPABILITY="$$cpu"; used="$$(python -c "$$ask")"; \
	  echo "test-cpus: $$cpu, of $$cpus"; \
	  if [[ "$$used" != "$$cpu"* ]] && [[ "$$best" == avx* ]]; then \
	    echo "error: torch computes with $$used where it was told to use $$cpu" >&2; exit 1; \
	  fi; \
	  python -m pytest $(CPU_TESTS) $(PYTEST_ARGS) || failed+=" $$cpu"; \
	done; \
	if [ -n "$$failed" ]; then echo "error: tests failed with$$failed" >&2; exit 1; fi

fuzz: $(READY)  ## broken fact files at every reader, for 300 seconds or FUZZ_SECONDS=30
	@python -m tests.facts.fuzz --seconds '$(FUZZ_SECONDS)'

lint: $(READY)  ## ruff's rules and format, the types, and the direction of imports
	@ruff check .
	@ruff format --check .
	@mypy
	@lint-imports --no-cache

audit: $(READY)  ## known vulnerabilities of the locked packages, where osv.dev can be reached
	@if python -c 'import urllib.request as u; u.urlopen("https://api.osv.dev/v1/vulns/GHSA-9hjg-9r4m-mvj7", timeout=10)' \
	    2>/dev/null; then \
	  [ -x $(AUDIT)/bin/pip-audit ] || { python -m venv $(AUDIT); $(AUDIT)/bin/python -m pip -q install pip-audit; }; \
	  $(AUDIT)/bin/pip-audit --vulnerability-service osv --no-deps --disable-pip -r constraints.txt; \
	else echo "audit: skipped, api.osv.dev can't be reached from here"; fi

bench: $(READY)  ## speed and memory beside the plain path
	@python -m benchmarks.run

bench-gpu: $(READY)  ## the same on a GPU
	@python -m benchmarks.gpu

simulate: $(READY)  ## size, power and coverage of the report's tests and intervals; an hour
	@python -m benchmarks.simulate --write

clean:  ## remove tables, reports and the tools' caches; keep .venv, models, results kept per fact and what they took
	rm -rf data/*.parquet data/*.json data/left_out.csv data/edits data/inputs data/measures data/statistics dvc_plots build ./*.egg-info
	rm -rf .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find reports -mindepth 1 -maxdepth 1 ! -name reference ! -name default-run ! -name second-model ! -name counterfact -exec rm -rf {} + 2>/dev/null || true
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +

# The Python that .venv is made from: PYTHON where given, else the first that is new enough.
$(READY): pyproject.toml constraints.txt
	@export PATH='$(OUTER_PATH)'; python=''; \
	enough='import sys; sys.exit(sys.version_info < (3, 11))'; \
	for candidate in $(or $(PYTHON),python3 python3.14 python3.13 python3.12 python3.11 python); do \
	  if "$$candidate" -c "$$enough" >/dev/null 2>&1; then python="$$candidate"; break; fi; \
	done; \
	if [ -z "$$python" ]; then \
	  echo "error: no Python 3.11 or newer found ($(or $(PYTHON),python3) is" \
	    "$$('$(or $(PYTHON),python3)' -V 2>/dev/null || echo missing));" \
	    "install one (Debian, Ubuntu: sudo apt-get install python3 python3-venv) or name one, as in" \
	    "make setup PYTHON=/path/to/python3.12" >&2; exit 1; \
	fi; \
	if ! "$$python" -c 'import ensurepip, venv' >/dev/null 2>&1; then \
	  version="$$("$$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')"; \
	  echo "error: $$python has no venv module; install it (Debian, Ubuntu: sudo apt-get install" \
	    "python$$version-venv) or name another, as in make setup PYTHON=/path/to/python3.12" >&2; exit 1; \
	fi; \
	if ! $(VENV)/bin/python -c "$$enough" >/dev/null 2>&1 || [ -n "$(PYTHON)" ]; then \
	  echo "setup 1/3: making $(VENV) from $$python ($$("$$python" -V))"; \
	  "$$python" -m venv --clear $(VENV); \
	else \
	  echo "setup 1/3: $(VENV) is there"; \
	fi
	@echo "setup 2/3: installing torch $(TORCH), which is large"
	@$(PIP) install torch==$(TORCH) -c constraints.txt
	@echo "setup 3/3: installing everything else, about 150 packages"
	@$(PIP) install -c constraints.txt -e '.[dev]'
	@touch $@
	@echo "setup: done"
