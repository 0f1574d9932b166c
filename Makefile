# `make demo` and `make test` need Python 3.11 or newer and nothing else.
PYTHON ?= python3
VENV ?= .venv
RESULTS ?= results

.PHONY: demo test check docs benchmarks clean

demo: $(VENV)/examples
	$(VENV)/bin/python examples/demo.py --output $(RESULTS)

test: $(VENV)/dev
	$(VENV)/bin/python -m pytest -n auto

check: $(VENV)/dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

docs: $(VENV)/docs
	$(VENV)/bin/python -m sphinx -n -W --keep-going docs build/docs

benchmarks: $(VENV)/benchmarks
	$(VENV)/bin/python -m benchmarks --output $(RESULTS)

# the package with one of its extras; an empty file marks what is installed
$(VENV)/%: pyproject.toml constraints.txt
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --constraint constraints.txt --editable '.[$*]'
	touch $@

clean:
	rm -rf $(VENV) $(RESULTS) build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
