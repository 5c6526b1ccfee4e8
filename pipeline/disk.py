"""Files that are written whole or not at all, and one sentence for what the disk objects to."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import UserError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_CLOSED = {errno.EROFS, errno.EACCES, errno.EPERM}


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the disk may object to while `path` is written into a UserError of one sentence."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            found = f"{path} could not be written because the disk is full or a quota is used up"
            raise UserError(f"{found} ({os.strerror(error.errno)}); free some space and run again") from error
        if error.errno in _CLOSED:
            found = f"{path} could not be written because its folder is read-only or belongs to someone else"
            raise UserError(f"{found} ({os.strerror(error.errno)}); make {path.parent} writable") from error
        raise UserError(
            f"{path} could not be written ({error.strerror or error}); {path.parent} must be a folder on a sound disk"
        ) from error


def sync_folder(folder: Path) -> None:
    """Wait until the names in `folder` are on the disk."""
    if not hasattr(os, "O_DIRECTORY"):  # Windows can't, and needs not
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file by way of a temporary one beside it; UserError where the disk is full or the folder read-only."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(
            f"{path} could not be written ({error.strerror}); free space or make {path.parent} writable"
        ) from error


def digest(path: Path) -> str:
    """SHA-256 of a file, 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
