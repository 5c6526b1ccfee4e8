"""What is done, what is left, for how long, in how much space; `--prune` removes what no current setting needs.

    python -m stages.status            make status
    python -m stages.status --prune    make prune

No model is loaded. Where it is not known yet what a step needs, nothing is pruned: it would be a guess. The time left
is an estimate, see `pipeline.compute.status`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import nullcontext

from pipeline.compute import inputs, status
from pipeline.compute.pending import PARAMS, steps
from pipeline.edit.methods import load
from pipeline.errors import UserError
from pipeline.settings.params import Params
from pipeline.watch import in_use


def run(settings: Params, prune: bool) -> None:
    """Print the status; or remove, and say how much."""
    store = inputs.store()
    found = status.survey(store.entries(), steps(settings, store))
    if not prune:
        print(status.render(found))
        return
    if waiting := found.waiting:
        stage, _, why = waiting.waits.partition(": ")
        raise UserError(
            f"nothing is removed, as what {waiting.step} needs is not known before the stage {stage} has run ({why}); "
            "run `dvc repro` first"
        )
    files, size = store.prune(found.needed)
    print(f"removed {status.files(files, size)}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m stages.status", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--prune", action="store_true", help="remove what no current setting needs")
    asked = parser.parse_args(arguments)
    try:
        settings = load(PARAMS)
        with in_use(alone=True) if asked.prune else nullcontext():
            run(settings, asked.prune)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
