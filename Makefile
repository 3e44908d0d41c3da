# `make demo` and `make test` do all their own set-up, in .venv beside this file.
#   PYTHON  interpreter to build .venv with (3.11 or newer; found when not given)
#   OUT     folder of the demo's results
#   ARGS    further arguments of scalebrain demo or pytest

OUT ?= demo-out
ARGS ?=
VENV ?= .venv
PIP = $(VENV)/bin/python -m pip --disable-pip-version-check
NEEDS = pyproject.toml constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo test bench bench-quick setup-dev lint audit docs constraints clean

help:
	@echo "make demo       simulate a cohort, run the whole study on it, write $(OUT)/report.html"
	@echo "make test       run the tests"
	@echo "make bench      time benchmarks/suite and save the figures; compare: ARGS=--benchmark-compare"
	@echo "make bench-quick  run it once for its results, untimed"
	@echo "make lint       ruff, mypy, numpydoc, codespell, import contracts, bandit"
	@echo "make audit      known vulnerabilities of the pinned versions; needs a network"
	@echo "make docs       build the documentation: docs/_build/html/index.html"
	@echo "make clean      remove .venv and the caches"

demo: $(VENV)/.ready
	$(VENV)/bin/scalebrain demo $(OUT) $(ARGS)

test: $(VENV)/.ready
	$(VENV)/bin/python -m pytest $(ARGS)

bench: $(VENV)/.ready
	$(VENV)/bin/python -m pytest benchmarks/suite --benchmark-enable --benchmark-autosave $(ARGS)

bench-quick: $(VENV)/.ready
	$(VENV)/bin/python -m pytest benchmarks/suite $(ARGS)

setup-dev: $(VENV)/.ready-dev

lint: $(VENV)/.ready-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/numpydoc lint $$(find scalebrain -name '*.py' | sort)
	$(VENV)/bin/codespell
	$(VENV)/bin/lint-imports --no-logo
	$(VENV)/bin/bandit -q -r scalebrain deploy -c pyproject.toml

# Asks a service on the network about every line of constraints.txt, from an environment of its own.
audit: $(VENV)-audit/bin/pip-audit
	$(VENV)-audit/bin/pip-audit -r constraints.txt --no-deps --disable-pip -s osv --progress-spinner off

$(VENV)-audit/bin/pip-audit:
	$(MAKE) VENV=$(VENV)-audit $(VENV)-audit/bin/python
	$(VENV)-audit/bin/python -m pip --disable-pip-version-check install -q pip-audit==2.10.1

# Everything anew: what is no longer there leaves no page. Warnings are errors, and so are links
# that lead nowhere and public functions without a page. Nothing is downloaded.
docs: $(VENV)/.ready-dev
	rm -rf docs/_build docs/api docs/notebooks docs/project
	$(VENV)/bin/python -m sphinx -E -q -W --keep-going -b html docs docs/_build/html
	@echo docs/_build/html/index.html

$(VENV)/.ready: $(VENV)/bin/python $(NEEDS)
	$(PIP) install -c constraints.txt -e ".[test,preprocess]"
	@touch $@

$(VENV)/.ready-dev: $(VENV)/bin/python $(NEEDS)
	$(PIP) install -c constraints.txt -e ".[test,dev,docs,preprocess]"
	@touch $(VENV)/.ready $@

# Some systems ship Python without ensurepip: there the interpreter's own pip fills .venv.
$(VENV)/bin/python:
	@set -e; \
	for python in $(PYTHON) $(if $(PYTHON),,python3.11 python3 python3.12 python3.13 python); do \
	  if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
	    found=$$python; break; \
	  fi; \
	done; \
	if [ -z "$$found" ]; then \
	  echo "scalebrain needs Python 3.11 or newer; found none as $(or $(PYTHON),python3.11 or python3)." >&2; \
	  echo "Install it, or name it: make $(firstword $(MAKECMDGOALS)) PYTHON=/path/to/python3.11" >&2; \
	  exit 1; \
	fi; \
	echo "setting up $(VENV) with $$found ($$($$found -V))"; \
	$$found -m venv $(VENV) >/dev/null 2>&1 || { \
	  $$found -m venv --clear --without-pip $(VENV) && \
	  $$found -m pip --python $(VENV)/bin/python install pip; \
	} || { \
	  rm -rf $(VENV); \
	  echo "could not create $(VENV): $$found needs its venv module and pip." >&2; \
	  exit 1; \
	}

# Versions that fit together, for every extra that only wheels are needed for: a fresh
# environment from pyproject.toml, frozen. torch is named exactly, without the local version
# that some indexes put behind it. aiobotocore (s3fs) wants python-dateutil 2 and a certain boto3
# (moto), which pip alone finds out only after a long search.
FROZEN = test,dev,docs,cluster,cloud,preprocess
constraints:
	rm -rf $(VENV)-freeze
	$(MAKE) VENV=$(VENV)-freeze $(VENV)-freeze/bin/python
	$(VENV)-freeze/bin/python -m pip install torch==2.13.0 "python-dateutil<3" "boto3<1.43.118" -e ".[$(FROZEN)]"
	$(VENV)-freeze/bin/python -m pip freeze --exclude-editable | sed 's/+cpu$$//' > constraints.txt
	rm -rf $(VENV)-freeze

clean:
	rm -rf $(VENV) $(VENV)-audit docs/_build docs/api docs/notebooks docs/project .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
