# `make demo` and `make test` are all that a newcomer needs; each sets itself up in .venv.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test check clean

demo: .venv/run-time
	$(BIN)/mbr-live demo

test: .venv/development .venv/servers
	$(BIN)/pytest -n 2 --dist loadfile

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
	$(BIN)/python -m pip install --quiet --editable '.[train,dev]'
	@touch $@ .venv/run-time

# What tests talk to (cameras by RTSP, an MQTT broker, a database) and a compiler, where they can be had; else tests skip,
# and say so.
SERVERS := aravis-tools g++ mosquitto postgresql gir1.2-gst-rtsp-server-1.0 python3-gst-1.0 gstreamer1.0-plugins-base gstreamer1.0-plugins-good \
	gstreamer1.0-plugins-ugly
.venv/servers: .venv/bin/python
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  echo "installing servers for the tests"; \
	  export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1; \
	  apt-get install --yes --quiet --no-install-recommends $(SERVERS) >/dev/null 2>&1 \
	    || { apt-get update >/dev/null 2>&1; \
	         apt-get install --yes --quiet --no-install-recommends $(SERVERS) >/dev/null 2>&1; } \
	    || echo "they cannot be had; the tests that need them will skip"; \
	fi
	@touch $@

clean:
	rm -rf .venv demo-run build dist
