# On a machine with Python >= 3.11 and make: `make demo` runs the main job, `make test` the tests.
# uv is used when it is there, venv + pip when not. PYTHON names another interpreter.

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
DEMO_ARGS ?=
export UV_PYTHON_DOWNLOADS = never

.PHONY: help demo test check lint fix clean

help:
	@echo "make demo   run the comparisons and open the report they end with (DEMO_ARGS=--quick is shorter)"
	@echo "make test   run the tests"
	@echo "make check  lint, types, README and docs code, notebooks, examples, wheel"
	@echo "make fix    format the code"
	@echo "make clean  remove the environment and what was built"

demo: $(VENV)/.demo
	$(BIN)/adamw-jax demo $(DEMO_ARGS)

test: $(VENV)/.test
	$(BIN)/python -m pytest

check: $(VENV)/.check
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python tools/check.py

fix: $(VENV)/.check
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache

# One stamp per extra; a changed pyproject.toml or constraints.txt installs again.
$(VENV)/.%: pyproject.toml constraints.txt
	@if command -v uv >/dev/null 2>&1; then \
	  test -x $(BIN)/python || uv venv --quiet --python $(PYTHON) $(VENV); \
	  uv pip install --quiet --python $(BIN)/python -c constraints.txt -e ".[$*]"; \
	else \
	  test -x $(BIN)/python || $(PYTHON) -m venv $(VENV); \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[$*]"; \
	fi
	@touch $@
