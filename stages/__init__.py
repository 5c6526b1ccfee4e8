"""One thin module per DVC stage: read the params, call the pipeline, write the stage's outputs.

DVC runs the first `python` of the PATH, which is the system's where .venv is not activated. This file runs before any
other, so it holds nothing that an old Python without packages does not know.
"""

import sys

PACKAGES = ("numpy", "pandas", "pydantic", "ruamel", "torch", "transformers")  # some of those that every stage needs


def refusal():
    # type: () -> str
    """What is wrong with this Python, in one sentence; empty if nothing is."""
    if sys.version_info < (3, 11):  # noqa: UP036
        lacks = "is older than 3.11"
    else:
        from importlib.util import find_spec

        missing = [name for name in PACKAGES if find_spec(name) is None]
        lacks = "lacks the package " + missing[0] if missing else ""
    if not lacks:
        return ""
    return "error: " + sys.executable + " " + lacks + "; run `make repro`, or `. .venv/bin/activate` before dvc\n"


if refusal():
    sys.stderr.write(refusal())
    sys.exit(2)
