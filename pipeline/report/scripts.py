"""The page's scripts and the data they read: inlined, allowed one by one in the page's Content-Security-Policy.

A policy that lists the SHA-256 of each script (CSP level 3, "hash-source") lets no other script run, whatever stands in
the tables. Data goes in as JSON in which no character could close the tag it stands in.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.errors import UserError

FOLDER = Path(__file__).parent
# In the order they run in: what a later one uses stands before it.
SCRIPTS = (
    "vendor/d3.min.js",
    "vendor/plot.umd.min.js",
    "scripts/tables.js",
    "scripts/drawing.js",
    "scripts/explorer.js",
)
_UNSAFE = {ord(character): f"\\u{ord(character):04x}" for character in "<>&\u2028\u2029"}


class Script(NamedTuple):
    """The text between a pair of script tags, and its source in the policy."""

    code: str
    source: str


def scripts(folder: Path = FOLDER, names: Sequence[str] = SCRIPTS) -> list[Script]:
    """The page's scripts, in their order. Raises UserError where one could end its own tag or is not as committed."""
    found = []
    for name in names:
        code = (folder / name).read_bytes().decode("utf-8")
        if "\r" in code or "</script" in code.lower() or "<!--" in code:
            raise UserError(
                f"{folder / name}: holds a carriage return, '</script' or '<!--', which a browser would not take as "
                "part of the script; check the file out again with its line ends as committed"
            )
        found.append(Script(code, f"'sha256-{base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()}'"))
    return found


def policy(code: Sequence[Script]) -> str:
    """The page's Content-Security-Policy: nothing is loaded, and of scripts only these run."""
    allowed = " ".join(script.source for script in code) or "'none'"
    return (
        f"default-src 'none'; script-src {allowed}; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; "
        "form-action 'none'"
    )


def safe_json(value: Any) -> str:
    """Compact JSON that can stand inside a script tag: no <, > or & in it, and no line end that is none to JSON."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).translate(_UNSAFE)


def licences() -> str:
    """The licences of the libraries among SCRIPTS, which ask to stand in every copy."""
    return (FOLDER / "vendor" / "LICENSES.txt").read_text("utf-8")
