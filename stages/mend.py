"""Take out of DVC's own files what a kill cut off while DVC wrote them; `make repro` begins with it.

DVC writes dvc.lock and .dvc/tmp/rwlock in place, and does not start where it can't read them. A stage that dvc.lock
loses is found again in DVC's run cache, or goes through its finished units once more.
"""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

from dvc.lock import Lock, LockError
from dvc.schema import COMPILED_LOCKFILE_SCHEMA
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from voluptuous import Invalid

STAGE = re.compile(r"^  \S.*:$", re.MULTILINE)  # the line that begins a stage in dvc.lock


def main(root: Path = Path()) -> int:
    """Mend the files of the project in `root`, where no DVC is at work; returns the exit status."""
    work = root / ".dvc" / "tmp"
    if work.is_dir():
        try:
            with Lock(str(work / "lock")), Lock(str(work / "rwlock.lock")):
                mend_lock(root / "dvc.lock")
                mend_rwlock(work / "rwlock")
        except LockError:
            pass  # DVC says so itself, or waits
    return 0


def mend_lock(path: Path) -> None:
    """Drop the stages from a dvc.lock that can't be read, beginning with the last, until it can be; or all of it."""
    text = whole = path.read_text("utf-8", errors="replace") if path.exists() else None
    while text is not None and not _readable(text):
        begun = [found.start() for found in STAGE.finditer(text)]
        text = text[: begun[-1]] if begun else None
    if text == whole:
        return
    if text is None:
        path.unlink()
    else:
        new = path.with_name(f".{path.name}.new")
        new.write_text(text, "utf-8")
        os.replace(new, path)
    print(f"{path.name} was cut off by a kill; the stages that it lost are looked for again")


def _readable(text: str) -> bool:
    try:
        COMPILED_LOCKFILE_SCHEMA(YAML(typ="safe").load(text))
    except (YAMLError, Invalid):
        return False
    return True


def mend_rwlock(path: Path) -> None:
    """Remove the list of paths that DVC's processes use where it can't be read: no DVC is at work."""
    try:
        json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        pass
    except ValueError:
        path.unlink()


if __name__ == "__main__":
    sys.exit(main())
