"""Carry finished units to another machine: write all of the store into one file (make export-units), and take those of
such a file into the store (make import-units).

No model is loaded. The run on the other machine goes on from them, where its settings, code and library versions ask
for the same, and knows what stages took to compute them. `make prune` before an export leaves out what no current
setting needs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline.compute import inputs, status
from pipeline.compute.carried import export_units, import_units
from pipeline.compute.keys import versions
from pipeline.compute.pending import PARAMS
from pipeline.edit.methods import load
from pipeline.errors import UserError
from pipeline.watch import in_use
from stages._run import TIMINGS


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m stages.units", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=("export", "import"))
    parser.add_argument("file", type=Path, help="the file of units to write, or to read")
    asked = parser.parse_args(arguments)
    try:
        store = inputs.store(load(PARAMS))
        with in_use():
            if asked.what == "export":
                number, size = export_units(store, asked.file, TIMINGS)
                print(f"{asked.file} holds {number} finished units, {status.size(size)}")
            else:
                new, number, made_with = import_units(store, asked.file, TIMINGS)
                print(f"{new} of {number} units of {asked.file} are new in {store.root}")
                if made_with != versions():
                    print(
                        f"they were computed with {_told(made_with)}; with {_told(versions())} they are computed anew"
                    )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _told(found: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in found.items())


if __name__ == "__main__":
    sys.exit(main())
