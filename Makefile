# Every target needs Python 3.11 or newer, with pip, and nothing else.
PYTHON ?= python3
VENV ?= .venv
RESULTS ?= results

JAX_LAWS = agreement batches bipartite by_hand dispatch dropout edge_features edge_features_transforms empty \
    gradcheck half_precision head_masks hostile_values order parallel_edges parts rows saved_tensors score_bias \
    transforms
TRITON_TESTS = tests/kernels/test_triton_interpreted.py tests/kernels/test_triton_waits.py
WORKFLOWS = $(wildcard .github/workflows/*.yml)
SCHEMA = $(VENV)/bin/check-jsonschema --builtin-schema

.PHONY: demo test test-jax test-triton test-boundscheck test-oldest test-newest check check-style check-types check-workflows docs check-docs benchmarks distributions clean

demo: $(VENV)/examples
	$(VENV)/bin/python examples/demo.py --output $(RESULTS)

# a file is one process's work: what its fixtures make is made once, and fewer kernels are compiled at once; files that
# are one long test come early, as tests/distributed does, not after all others
test: $(VENV)/dev
	$(VENV)/bin/python -m pytest -n auto --dist loadfile --no-loadscope-reorder
	$(MAKE) test-jax
ifeq ($(shell uname),Linux)  # the only one that Triton is for
	$(MAKE) test-triton
endif

# laws that kernels obey, of those of JAX, in float64 and half precision (tests/jax has float32); not what PyTorch's
# compiler and exporter are asked, what its memory keeps, what maps over a graph, and what is no kernel's, errors
test-jax: $(VENV)/dev
	HYPOTHESIS_PROFILE=few $(VENV)/bin/python -m pytest -n auto -p jax_kernels $(JAX_LAWS:%=tests/laws/test_%.py) \
	    -k "jax and not float32 and not keeps_no_graph"

# the kernels for GPUs, interpreted on the CPU, in a process of their own: Triton asks once
test-triton: $(VENV)/dev
	TRITON_INTERPRET=1 HYPOTHESIS_PROFILE=few $(VENV)/bin/python -m pytest -n auto -p interpreted \
	    tests/laws $(TRITON_TESTS) -k triton

# the Numba kernels with every index checked, in a cache of their own
test-boundscheck: $(VENV)/dev
	NUMBA_BOUNDSCHECK=1 NUMBA_CACHE_DIR=$(CURDIR)/build/numba-boundscheck \
	    $(VENV)/bin/python -m pytest -n auto tests/kernels tests/laws -k "numba or simd"

# PyTorch's rooms of the suite with the oldest versions that pyproject.toml allows
test-oldest: $(VENV)-oldest/test
	$(VENV)-oldest/bin/python -m pytest -n auto tests/laws tests/kernels tests/graph tests/layer tests/distributed

# the suite with the newest versions there are
test-newest: $(VENV)-newest/test
	$(VENV)-newest/bin/python -m pytest -n auto

check: check-style check-types check-workflows

check-style: $(VENV)/dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

check-types: $(VENV)/dev
	$(VENV)/bin/mypy

check-workflows: $(VENV)/dev
	$(SCHEMA) vendor.github-workflows $(WORKFLOWS)
	$(SCHEMA) custom.github-workflows-require-timeout $(WORKFLOWS)
	$(SCHEMA) vendor.dependabot .github/dependabot.yml
	$(SCHEMA) vendor.github-issue-forms .github/ISSUE_TEMPLATE/bug.yml
	$(SCHEMA) vendor.github-issue-config .github/ISSUE_TEMPLATE/config.yml
	$(SCHEMA) vendor.citation-file-format CITATION.cff
	$(VENV)/bin/zizmor --offline --quiet --persona pedantic .github
	$(VENV)/bin/pre-commit validate-config .pre-commit-config.yaml

docs: $(VENV)/docs
	$(VENV)/bin/python -m sphinx -n -W --keep-going docs build/docs

# the pages in Chromium, which `playwright install chromium` or the system brings
check-docs: docs $(VENV)/pages
	$(VENV)/bin/python -m pytest docs

benchmarks: $(VENV)/benchmarks
	$(VENV)/bin/python -m benchmarks --output $(RESULTS)

# the source distribution and the wheel, in dist/
distributions: $(VENV)/release
	$(VENV)/bin/python -m build

# the package with one of its dependency groups; an empty file marks what is installed
$(VENV)/%: pyproject.toml constraints.txt
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --constraint constraints.txt --upgrade pip
	$(VENV)/bin/python -m pip install --constraint constraints.txt --group $* --editable .
	touch $@

$(VENV)-oldest/test: pyproject.toml constraints-oldest.txt
	test -d $(VENV)-oldest || $(PYTHON) -m venv $(VENV)-oldest
	$(VENV)-oldest/bin/python -m pip install --upgrade pip
	$(VENV)-oldest/bin/python -m pip install --constraint constraints-oldest.txt \
	    --editable '.[files,pyg,scipy,testing]' pytest pytest-xdist
	touch $@

$(VENV)-newest/test: pyproject.toml
	test -d $(VENV)-newest || $(PYTHON) -m venv $(VENV)-newest
	$(VENV)-newest/bin/python -m pip install --upgrade pip
	$(VENV)-newest/bin/python -m pip install --upgrade --group test --editable .
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-oldest $(VENV)-newest $(RESULTS) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
