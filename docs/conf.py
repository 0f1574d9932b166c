"""Sphinx: `make docs`, or `python -m sphinx -n -W docs build/docs`. Nothing is fetched."""

import os
import sys
from pathlib import Path

DOCS = Path(__file__).parent
sys.path += [str(DOCS), str(DOCS.parent), str(DOCS.parent / "examples")]

os.environ["TQDM_DISABLE"] = "1"  # read by the next line

import figures  # noqa: E402
import jax  # noqa: E402
import torch  # noqa: E402

import gatv2  # noqa: E402

jax.config.update("jax_platforms", "cpu")  # or it tells which others it does not find

# the names under which their own documentation has them
jax.Array.__module__, jax.Array.__qualname__ = "jax", "Array"
torch.nn.Module.__module__ = torch.nn.Parameter.__module__ = "torch.nn"


project = "gatv2"
author = "the gatv2 authors"
copyright = "2026, the gatv2 authors"  # noqa: A001
release = version = gatv2.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_gallery.gen_gallery",
    "sphinxcontrib.katex",
]
exclude_patterns = ["_figures", "gallery/*.py"]
nitpicky = True
nitpick_ignore = [  # types of attributes, by names that are private
    ("py:class", "equinox.nn._linear.Linear"),
    ("py:class", "jax._src.typing.SupportsDType"),
    ("py:class", "gatv2.jax.graph.sort.Array"),
    ("py:class", "gatv2.jax.sparse.tangent.Features"),
]

myst_enable_extensions = ["attrs_block", "attrs_inline", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

default_role = "code"
autosummary_generate = False  # its tables only
autodoc_member_order = "bysource"
# the text tells shapes and dtypes; six overloads of a signature tell nothing
autodoc_typehints = "none"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
python_maximum_signature_line_length = 88
python_use_unqualified_type_names = True

# the names that we refer to, in files of our own: the build needs no network
intersphinx_mapping = {
    name: (url, f"inventories/{name}.txt")
    for name, url in {
        "python": "https://docs.python.org/3/",
        "numpy": "https://numpy.org/doc/stable/",
        "torch": "https://docs.pytorch.org/docs/stable/",
        "jax": "https://docs.jax.dev/en/latest/",
        "hypothesis": "https://hypothesis.readthedocs.io/en/latest/",
    }.items()
}

copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

# examples that take seconds run, in the command lines of figures.py, and the others are shown
sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "gallery",
    "filename_pattern": rf"/({'|'.join(figures.EXAMPLES)})\.py$",
    "ignore_pattern": r"^(checkpoints|demo|run_log)\.py$",
    "reset_argv": "figures.arguments",
    "image_srcset": ["2x"],
    "download_all_examples": False,
    "show_signature": False,
    "write_computation_times": False,
}
torch.set_num_threads(1)  # their graphs are small

html_theme = "furo"
pygments_dark_style = "github-dark"
html_title = f"gatv2 {release}"
html_static_path = ["_static"]
html_favicon = "_static/favicon.svg"
katex_css_path = "katex/katex.min.css"  # with its fonts: pages need no network either
html_css_files = ["gatv2.css"]
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#1f5fa8", "color-brand-content": "#1f5fa8"},
    "dark_css_variables": {"color-brand-primary": "#7ab0ee", "color-brand-content": "#7ab0ee"},
}

figures.draw_all()
