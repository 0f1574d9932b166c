"""The directive `picture`: an SVG that stands in the page itself, with a caption.

So it takes its text colour from the theme, which an image in a file of its own can't.
"""

from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective


class Picture(SphinxDirective):
    """`{picture} path/to/file.svg`, relative to the documentation; the content is the caption."""

    required_arguments = 1
    has_content = True

    def run(self) -> list[nodes.Node]:
        """The drawing and its caption."""
        path = Path(self.env.srcdir) / self.arguments[0]
        self.env.note_dependency(path)
        svg = path.read_text().replace("<svg ", '<svg role="img" ', 1)
        figure = nodes.container(classes=["picture"])
        figure += nodes.raw("", svg, format="html")
        figure += self.parse_content_to_nodes()
        return [figure]


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive."""
    app.add_directive("picture", Picture)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
