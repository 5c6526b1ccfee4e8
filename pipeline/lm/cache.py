"""Models that are made on this machine, converted or trained, in one folder for all clones and worktrees of a user.

Such a model is called `cached:NAME` wherever it is written down; where the folder is, only who loads it looks up, so
that no table, no key and no output of DVC's holds a place on this machine. NAME says what the model was made from.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import platformdirs
from filelock import FileLock, Timeout

from pipeline.disk import sync_folder, writing
from pipeline.errors import UserError
from pipeline.lm.folders import fingerprint
from pipeline.progress import say

VARIABLE = "LOCALIZE_EDIT_MODELS"
PREFIX = "cached:"  # params.yaml takes no name that begins so
MARK = ".fingerprint"  # in a model's folder, the fingerprint of what was put there; none of the files in it


def models_folder() -> Path:
    """The folder that the environment variable names, else the one of this user's cache."""
    if named := os.environ.get(VARIABLE):
        return Path(named).expanduser().absolute()
    return platformdirs.user_cache_path("localize-and-edit", appauthor=False) / "models"


def place(source: str) -> str:
    """The folder of `cached:NAME`, which must be there; any other folder or hub name as it is."""
    if not source.startswith(PREFIX):
        return source
    folder = models_folder() / source.removeprefix(PREFIX)
    if not folder.is_dir():
        raise UserError(
            f"{folder} is not there, which the stage model made; run `dvc repro -f model`, or name in {VARIABLE} the "
            "folder that has it, which every machine of a cluster must see"
        )
    return str(folder)


def made(name: str, make: Callable[[Path], object]) -> str:
    """`cached:NAME`, made first by `make` where it is not there or is not what was put there.

    make: writes the model as the folder that it is given, beside which it may leave other files. Of several processes
    that want the same model one makes it and the others wait; the folder appears whole or not at all. Raises UserError
    where it can't be written.
    """
    models = models_folder()
    folder = models / name
    if _whole(folder):
        return PREFIX + name
    with writing(folder):
        models.mkdir(parents=True, exist_ok=True)
        with _alone(models / f".{name}.lock", name) as locked:
            if _whole(folder):
                return PREFIX + name
            if folder.exists():
                say(f"warning: {folder} is not as it was made; it is made again")
            if locked:  # else they may be another process's, at work
                for left in models.glob(f".{name}-*"):
                    shutil.rmtree(left, ignore_errors=True)
            with tempfile.TemporaryDirectory(dir=models, prefix=f".{name}-", ignore_cleanup_errors=True) as work:
                new = Path(work) / "model"
                make(new)
                (new / MARK).write_text(fingerprint(new), encoding="ascii")
                _replace(new, folder)
            sync_folder(models)
    return PREFIX + name


def _whole(folder: Path) -> bool:
    """Whether the folder holds what was put there."""
    try:
        return (folder / MARK).read_text(encoding="ascii") == fingerprint(folder)
    except (OSError, ValueError):
        return False


def _replace(new: Path, folder: Path) -> None:
    if folder.exists() and not _whole(folder):
        shutil.rmtree(folder)
    try:
        os.replace(new, folder)
    except OSError:
        if not _whole(folder):  # else a process that knows no locks was first
            raise


@contextlib.contextmanager
def _alone(path: Path, name: str) -> Iterator[bool]:
    """Within: no other process makes this model. False where the file server knows no locks; a precaution is lost."""
    lock = FileLock(path)
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            say(f"another process is making {name}; waiting for it")
            lock.acquire()
    except (OSError, NotImplementedError):
        yield False
        return
    try:
        yield True
    finally:
        lock.release()
