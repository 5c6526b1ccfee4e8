"""Stage `params`: refuse a bad params.yaml, whichever key is wrong, and note what the files are that it names.

DVC runs it each time: whether a file that a setting names has other content, only looking at it can tell.
"""

import sys
from pathlib import Path

from pipeline.compute.inputs import surroundings
from pipeline.edit.methods import load, widest_window
from pipeline.errors import UserError
from pipeline.lm.packaged import check_bos
from pipeline.tables import write_json


def main() -> int:
    """Check the file that the command line names (params.yaml); returns the exit status."""
    try:
        params = load(*sys.argv[1:2])
        check_bos(params.model.name, params.model.add_bos)
        for name, content in surroundings(params, widest_window(params)).items():
            write_json(content, Path("data/inputs") / f"{name}.json")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
