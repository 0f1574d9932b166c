r"""Formulas as MathML, written when the pages are built: no script, no fonts, no network.

Every current browser draws MathML by itself. Displayed formulas that stand in one line, apart by
`\qquad`, break into several lines where the page is narrow.
"""

import re
from typing import Any

from docutils.nodes import SkipNode, math, math_block
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator


def visit_math(translator: HTML5Translator, node: math) -> None:
    """A formula in a line."""
    translator.body.append(convert(node.astext()))
    raise SkipNode


def visit_math_block(translator: HTML5Translator, node: math_block) -> None:
    """Displayed formulas."""
    formulas = re.split(r"\\qquad|\n\n", node.astext())
    maths = (convert(formula, display="block") for formula in formulas if formula.strip())
    translator.body.append(f'<div class="math">{"".join(maths)}</div>')
    raise SkipNode


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the renderer; no other is, so Sphinx takes it."""
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
