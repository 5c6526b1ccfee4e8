"""What is done, what is left, for how long, in how much space (make status); with `--prune`, remove what no current
setting needs (make prune).

No model is loaded. Where it is not known what a step or another project needs, nothing is pruned: it would be a guess.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import nullcontext

from pipeline.compute import inputs, status
from pipeline.compute.pending import PARAMS, beside, steps
from pipeline.edit.methods import load
from pipeline.errors import UserError
from pipeline.lm.cache import models_folder
from pipeline.settings.params import Params
from pipeline.watch import in_use


def run(settings: Params, prune: bool) -> None:
    """Print the status; or remove, and say how much."""
    store, shared = inputs.store(settings), settings.compute.store_is_shared
    needed = steps(settings, store)
    found = status.survey(store.entries(), needed, beside(settings, needed))
    if not prune:
        print(status.render(found, shared=shared), f"units are in {store.root}, models in {models_folder()}", sep="\n")
        return
    if shared:
        where = f"compute.store is {store.root}: outside this project's folder"
        raise UserError(f"nothing is removed, as {where}, where units of other projects would go too")
    if waiting := found.waiting:
        stage, _, why = waiting.waits.partition(": ")
        raise UserError(
            f"nothing is removed, as what {waiting.step} needs is not known before the stage {stage} has run ({why}); "
            "run `dvc repro` first"
        )
    print(f"removed {status.files(*store.prune(found.needed))}")


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
