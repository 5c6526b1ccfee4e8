"""Take out of DVC's own files what a kill cut off while DVC wrote them; `make repro` begins with it.

DVC writes dvc.lock and .dvc/tmp/rwlock in place, and does not start where it can't read them. A stage that dvc.lock
loses runs again, and finds its units finished.
"""

from __future__ import annotations

import json
import re
from contextlib import suppress
from pathlib import Path

from dvc.lock import Lock, LockError
from dvc.schema import COMPILED_LOCKFILE_SCHEMA
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from voluptuous import Invalid

from pipeline.disk import write_bytes

STAGE = re.compile(r"^  \S.*:$", re.MULTILINE)  # the line that begins a stage in dvc.lock


def main(root: Path = Path()) -> int:
    """Mend the files of the project in `root`, where no DVC is at work; returns the exit status."""
    lock, work = root / "dvc.lock", root / ".dvc" / "tmp"
    if work.is_dir():
        with suppress(LockError, FileNotFoundError), Lock(str(work / "lock")), Lock(str(work / "rwlock.lock")):
            if lock.exists():
                mend_lock(lock)
            try:
                json.loads((work / "rwlock").read_bytes())
            except ValueError:
                (work / "rwlock").unlink()
    return 0


def mend_lock(path: Path) -> None:
    """Drop the stages from a dvc.lock that can't be read, beginning with the last, until it can be; or all of it."""
    text = whole = path.read_text("utf-8", errors="replace")
    while text and not _readable(text):
        text = text[: max((found.start() for found in STAGE.finditer(text)), default=0)]
    if not text:
        path.unlink()
    elif text != whole:
        write_bytes(path, text.encode())
    if not text or text != whole:
        print(f"{path.name} was cut off by a kill; the stages that it lost run again and find their units finished")


def _readable(text: str) -> bool:
    with suppress(YAMLError, Invalid):
        return bool(COMPILED_LOCKFILE_SCHEMA(YAML(typ="safe").load(text)))
    return False


if __name__ == "__main__":
    raise SystemExit(main())
