"""Prints what each of some examples says of itself, as its name and its text, in one process.

    python help_of_examples.py lookup.py demo.py

Each in a process of its own would import PyTorch anew, which takes longer than all the rest.
"""

import json
import runpy
import sys
from contextlib import redirect_stdout
from io import StringIO

from example_runs import EXAMPLES


def help_of(name: str) -> str:
    """What an example prints when it is run with `--help`."""
    sys.argv = [str(EXAMPLES / name), "--help"]
    with redirect_stdout(StringIO()) as printed:
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
        except SystemExit as end:
            if end.code:
                raise
    return printed.getvalue()


if __name__ == "__main__":
    sys.path.insert(0, str(EXAMPLES))
    print(json.dumps({name: help_of(name) for name in sys.argv[1:]}))
