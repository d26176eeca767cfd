PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help test lint types layers unit demo serve conformance docs pictures clean

help:  ## list the commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | sort | expand -t 18

$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "asgi-mlperf needs Python 3.11 or newer; call: make PYTHON=python3.11 <command>"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "no venv module; on Debian or Ubuntu: apt install python3-venv"; exit 1; }
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable '.[example]' --group dev
	@$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true  # on all cores, unlike pip; templates fail
	@touch $@

test: lint types layers unit  ## run every check

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.ready
	$(BIN)/mypy
	$(BIN)/pyright --pythonpath $(BIN)/python

layers: $(VENV)/.ready
	$(BIN)/lint-imports

unit: export PYTHONDONTWRITEBYTECODE =  # the many servers that tests start read what the first one compiled
unit: $(VENV)/.ready
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal --cov --cov-report=term

demo: $(VENV)/.ready  ## serve the example app without and with the plugin, and compare
	$(BIN)/python -m example_app.demo

serve: $(VENV)/.ready  ## serve the example app on http://127.0.0.1:8000
	$(BIN)/python -m uvicorn example_app.main:app --host 127.0.0.1 --port 8000

conformance: $(VENV)/.ready  ## run Starlette's and FastAPI's own tests with the plugin in every app
	$(BIN)/python tests/conformance/conformance.py

docs: $(VENV)/.ready  ## write what is generated: the settings tables, the dashboard, the rules
	$(BIN)/python docs/generate.py

pictures: $(VENV)/.ready  ## take the pictures of the documentation; needs Chromium: apt install chromium
	PYTHONPATH=. $(BIN)/python docs/pictures.py

clean:  ## remove what the other commands made
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .coverage htmlcov example_app/.cache
