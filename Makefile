# `make demo` and `make test` need Python 3.11 or newer and nothing else.
PYTHON ?= python3
VENV ?= .venv
RESULTS ?= results

.PHONY: demo test check clean

demo: $(VENV)/installed
	$(VENV)/bin/python examples/demo.py --output $(RESULTS)

test: $(VENV)/installed
	$(VENV)/bin/python -m pytest -n auto

check: $(VENV)/installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) $(RESULTS) build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
