# `make demo` and `make test` are all that a newcomer needs; each sets itself up in .venv.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test broker check picture clean

demo: .venv/run-time
	$(BIN)/mbr-live demo

test: .venv/development broker
	$(BIN)/pytest

# A real MQTT broker for the tests, where it can be had without asking; where not, they say that they skip.
broker:
	@PATH=$$PATH:/usr/sbin; command -v mosquitto >/dev/null || \
	  { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && \
	    DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get install --quiet --yes --no-install-recommends mosquitto; } || \
	  echo "no mosquitto here: tests of MQTT will be skipped (Debian: apt-get install mosquitto)"

check: .venv/development
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "mbr-live needs Python 3.11 or newer; this is $$($(PYTHON) --version). Try: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv .venv

.venv/run-time: .venv/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

.venv/development: .venv/bin/python pyproject.toml
	@echo "installing the development tools and torch (about 5 GB, once)"
	$(BIN)/python -m pip install --quiet --editable '.[train,outputs,dev]'
	@touch $@ .venv/run-time

clean:
	rm -rf .venv demo-run build dist
