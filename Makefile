# On a machine with Python >= 3.11 and make: `make demo` runs the main job, `make test` the tests.
# uv is used when it is there, venv + pip when not. PYTHON names another interpreter.

OLD_ENOUGH = import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for name in python3 python3.14 python3.13 python3.12 python3.11; do \
  if $$name -c '$(OLD_ENOUGH)' 2>/dev/null; then echo $$name; break; fi; done)
VENV ?= .venv
BIN = $(VENV)/bin
DEMO_ARGS ?=
TEST_ARGS ?=
STEPS ?=
export UV_PYTHON_DOWNLOADS = never

.PHONY: help demo test beside docs check fix pages constraints clean

help:
	@echo "make demo         run the comparisons and write a report to open in a browser (DEMO_ARGS=--quick is shorter)"
	@echo "make test         run the tests (TEST_ARGS='-k lookahead' for some)"
	@echo "make beside       run torch, timm, transformers, Keras and fastai beside the pages about them (an environment of 6 GB)"
	@echo "make docs         build the site in build/site/html"
	@echo "make check        the other tests, all tables both ways, lint, types, code in docs, examples, wheel (STEPS='lint types' for some)"
	@echo "make fix          format the code"
	@echo "make pages        write anew what is made from the registry: README's table, types of scale_by_x, docs/optimizers, its pictures"
	@echo "make constraints  bring constraints.txt up to date with pyproject.toml (needs uv)"
	@echo "make clean        remove the environment and what was built"

demo: $(VENV)/.demo
	$(BIN)/adamw-jax demo $(DEMO_ARGS)

test: $(VENV)/.test
	$(BIN)/python tools/run_tests.py $(TEST_ARGS)

beside:
	$(MAKE) VENV=.venv-beside .venv-beside/.beside
	.venv-beside/bin/python -m pytest -n 0 tests/test_beside.py

docs: $(VENV)/.docs
	$(BIN)/python tools/site.py

check: $(VENV)/.check
	$(BIN)/python tools/check.py $(STEPS)

fix: $(VENV)/.check
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

pages: $(VENV)/.check
	$(BIN)/python tools/readme_table.py
	$(BIN)/python tools/optimizer_exports.py
	$(BIN)/python tools/optimizer_pictures.py
	$(BIN)/python tools/optimizer_pages.py

constraints:
	uv export --upgrade --all-extras --format requirements-txt --no-emit-project --no-hashes \
	  --no-annotate --no-header --quiet --output-file constraints.txt >/dev/null
	rm -f uv.lock

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache

# One stamp per extra; a changed pyproject.toml or constraints.txt installs again.
$(VENV)/.%: pyproject.toml constraints.txt
	@if [ -z "$(PYTHON)" ] || ! $(PYTHON) -c '$(OLD_ENOUGH)'; then \
	  echo "Python 3.11 or newer is needed; name it: make $(or $(MAKECMDGOALS),demo) PYTHON=python3.12" >&2; \
	  exit 1; \
	fi
	@echo "Installing into $(VENV) what '$*' needs (once; about a minute) ..."
	@if command -v uv >/dev/null 2>&1; then \
	  if [ ! -x $(BIN)/python ]; then uv venv --quiet --python $(PYTHON) $(VENV) || exit 1; fi; \
	  uv pip install --quiet --python $(BIN)/python -c constraints.txt -e ".[$*]"; \
	else \
	  if [ ! -x $(BIN)/python ]; then $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }; fi; \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[$*]"; \
	fi
	@touch $@
