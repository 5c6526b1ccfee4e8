"""The store of finished units of work: nothing computed is lost, nothing damaged is used.

A unit is a file `root/<step>/<key>.<checksum>.<parquet or safetensors>`. The key is a hash of all that the unit's
result depends on. The checksum is of the file's bytes, so that a file cut short, emptied or changed by a single bit
no longer fits its own name: it is reported, removed, and the unit computed again. A file gets its name when it is
whole and on the disk, by a rename, so that a process may be killed at any moment and several may write at once.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import secrets
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.disk import sync_folder, writing
from pipeline.errors import UserError
from pipeline.progress import say

if TYPE_CHECKING:
    from torch import Tensor

STORE_VERSION = 1  # raised when files of the last version can't be used any more

TABLE, TENSORS = "parquet", "safetensors"
_NAME = re.compile(rf"([0-9a-f]{{32}})\.([0-9a-f]{{16}})\.({TABLE}|{TENSORS})")
_TEMPORARY = re.compile(r"\.[0-9a-f]{32}\.(?P<host>[A-Za-z0-9_-]*)\.(?P<pid>[0-9]+)\.[0-9a-f]{8}\.tmp")
_STEP = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_MARK = "store"  # the entry of a file's own metadata that holds version, key and label
_HOST = re.sub(r"[^A-Za-z0-9_-]", "_", socket.gethostname())

STALE_SECONDS = 3600.0  # the age at which a temporary file of another machine counts as left behind
_TICK = 2_000_000_000  # ns within which two changes of a folder may bear the same time
_ATTEMPTS = 3


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A stored unit. size in bytes, mtime in seconds since the epoch; label is empty if the file can't be read."""

    step: str
    key: str
    label: str
    size: int
    mtime: float


class Store:
    """Finished units below the folder `root`; opening removes what killed processes left half-written.

    Any number of processes may use one store. Units that can't be read are reported on standard error and taken
    for missing; where something can't be written, UserError says so and nothing half-written remains.
    """

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)
        # step -> (time of the folder's last change, time of listing, key -> names of its files)
        self._listed: dict[str, tuple[int, int, dict[str, list[str]]]] = {}
        if self.root.exists() and not self.root.is_dir():
            raise UserError(f"{self.root} is a file; the store of finished units needs a folder there")
        self._remove_stale()

    def get_table(self, step: str, key: str, label: str) -> pa.Table | None:
        """The table of a unit, without the store's own metadata; None if there is none, or none that is sound.

        label says in a warning which unit will be computed again.
        """
        content = self._get(step, key, TABLE, label)
        if content is None:
            return None
        table = pq.read_table(io.BytesIO(content), use_threads=False)
        metadata = {k: v for k, v in table.schema.metadata.items() if k != _MARK.encode()}
        return table.replace_schema_metadata(metadata or None)

    def put_table(self, step: str, key: str, table: pa.Table | pd.DataFrame, label: str) -> None:
        """Store the table of a unit; a DataFrame without its index. Equal tables give equal bytes."""
        if isinstance(table, pd.DataFrame):
            table = pa.Table.from_pandas(table, preserve_index=False).replace_schema_metadata(None)
        metadata = {**(table.schema.metadata or {}), _MARK.encode(): _mark(key, label).encode()}
        buffer = io.BytesIO()
        pq.write_table(table.combine_chunks().replace_schema_metadata(metadata), buffer, compression="zstd")
        self._put(step, key, TABLE, buffer.getvalue())

    def get_tensors(self, step: str, key: str, label: str) -> dict[str, Tensor] | None:
        """The tensors of a unit by name, on the CPU; None as for `get_table`."""
        from safetensors.torch import load

        content = self._get(step, key, TENSORS, label)
        return None if content is None else load(content)

    def put_tensors(self, step: str, key: str, tensors: Mapping[str, Tensor], label: str) -> None:
        """Store the tensors of a unit. Equal tensors give equal bytes."""
        from safetensors.torch import save

        # Cloned, since safetensors refuses tensors that share memory. All metadata are one entry, since it
        # writes several in any order.
        plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        self._put(step, key, TENSORS, save(plain, metadata={_MARK: _mark(key, label)}))

    def has(self, step: str, key: str) -> bool:
        """Whether there is a file of this unit; only reading shows whether it is sound."""
        return bool(self._names(step, key))

    def entries(self) -> list[Entry]:
        """All stored units, by step and key."""
        found = []
        for path, key in self._files():
            with contextlib.suppress(FileNotFoundError):  # another process may remove it meanwhile
                stat = path.stat()
                found.append(
                    Entry(step=path.parent.name, key=key, label=_label(path), size=stat.st_size, mtime=stat.st_mtime)
                )
        return found

    def contents(self) -> Iterator[tuple[str, str, bytes]]:
        """(step, name, content) of the file of each sound unit, by step and key."""
        for step, key in dict.fromkeys((path.parent.name, key) for path, key in self._files()):
            for kind in (TABLE, TENSORS):
                content = self._get(step, key, kind, key)
                if content is not None:
                    yield step, f"{key}.{_checksum(content)}.{kind}", content

    def take(self, step: str, name: str, content: bytes) -> bool:
        """Keep a file of another store; False where it is here already. ValueError says what is wrong with it."""
        key, kind = self.check(step, name, content)
        if self._get(step, key, kind, key) is not None:
            return False
        self._put(step, key, kind, content)
        return True

    @staticmethod
    def check(step: str, name: str, content: bytes) -> tuple[str, str]:
        """The key and kind of a store's file; ValueError says what is wrong with it, to follow its name."""
        found = _NAME.fullmatch(name)
        if found is None or not _STEP.fullmatch(step):
            raise ValueError("has a name that no unit has")
        if fault := _fault(content, found[1], found[3], name):
            raise ValueError(fault)
        return found[1], found[3]

    def prune(self, keep: set[tuple[str, str]]) -> tuple[int, int]:
        """Remove all units but those whose (step, key) is in `keep`; returns how many files and bytes went."""
        files = size = 0
        for path, key in self._files():
            if (path.parent.name, key) in keep:
                continue
            with writing(path):
                try:
                    freed = path.stat().st_size
                    path.unlink()
                except FileNotFoundError:  # another process removed it
                    continue
            files, size = files + 1, size + freed
        for folder in self._folders():
            with contextlib.suppress(OSError):  # not empty
                folder.rmdir()
        return files, size

    # Files

    def _folders(self) -> list[Path]:
        if not self.root.is_dir():
            return []
        return sorted(path for path in self.root.iterdir() if path.is_dir() and _STEP.fullmatch(path.name))

    def _files(self) -> list[tuple[Path, str]]:
        """Path and key of every unit's file; other files are none of the store's."""
        named = [(path, _NAME.fullmatch(path.name)) for folder in self._folders() for path in folder.iterdir()]
        return sorted((path, name[1]) for path, name in named if name)

    def _names(self, step: str, key: str) -> list[str]:
        """Names of the unit's files; more than one only if processes at once came to different bytes."""
        folder = self._folder(step)
        try:
            changed = folder.stat().st_mtime_ns
        except (FileNotFoundError, NotADirectoryError):
            return []
        # A listing serves until the folder changes: thousands of units are asked for one after the other.
        # One made right after a change is not trusted, since the next change may bear the same time.
        last = self._listed.get(step)
        if last is None or last[0] != changed or last[1] - changed < _TICK:
            now = time.time_ns()
            names: dict[str, list[str]] = {}
            for entry in os.listdir(folder):
                if name := _NAME.fullmatch(entry):
                    names.setdefault(name[1], []).append(entry)
            last = self._listed[step] = (changed, now, names)
        return sorted(last[2].get(key, []))

    def _folder(self, step: str) -> Path:
        if not _STEP.fullmatch(step):
            raise ValueError(f"step {step!r} can't be a folder's name")
        return self.root / step

    def _get(self, step: str, key: str, kind: str, label: str) -> bytes | None:
        """The bytes of the unit's first sound file; unsound and surplus ones are removed."""
        sound = None
        for name in self._names(step, key):
            if not name.endswith(f".{kind}"):
                continue
            path = self._folder(step) / name
            try:
                content = path.read_bytes()
            except FileNotFoundError:  # removed by another process as surplus or unsound
                continue
            except OSError as error:
                say(f"warning: {path} ({label}) can't be read ({error.strerror}); it is computed again")
                continue
            if sound is not None:
                _remove(path)
            elif fault := _fault(content, key, kind, name):
                say(f"warning: {path} ({label}) {fault}; it is removed and computed again")
                _remove(path)
            else:
                sound = content
        return sound

    def _put(self, step: str, key: str, kind: str, content: bytes) -> None:
        if not re.fullmatch(r"[0-9a-f]{32}", key):
            raise ValueError(f"key {key!r} is not of Store.key")
        folder = self._folder(step)
        path = folder / f"{key}.{_checksum(content)}.{kind}"
        with writing(path):
            if not folder.is_dir():
                folder.mkdir(parents=True, exist_ok=True)
                sync_folder(folder.parent)
            for attempt in range(_ATTEMPTS):
                temporary = folder / f".{key}.{_HOST}.{os.getpid()}.{secrets.token_hex(4)}.tmp"
                try:
                    with temporary.open("xb") as file:
                        file.write(content)
                        file.flush()
                        os.fsync(file.fileno())
                    temporary.replace(path)
                    sync_folder(folder)
                    return
                except FileNotFoundError:
                    # A machine of the same name, as containers may be, took the file for left behind, or
                    # `prune` the folder for empty.
                    if attempt == _ATTEMPTS - 1:
                        raise
                    folder.mkdir(parents=True, exist_ok=True)
                finally:
                    _remove(temporary)

    def _remove_stale(self) -> None:
        for folder in self._folders():
            for path in folder.iterdir():
                name = _TEMPORARY.fullmatch(path.name)
                if name and (_dead(name["host"], int(name["pid"])) or _old(path)):
                    _remove(path)


def _checksum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _mark(key: str, label: str) -> str:
    return json.dumps({"version": STORE_VERSION, "key": key, "label": label})


def _remove(path: Path) -> None:
    """Remove a file, if that is possible and it is still there; one that stays is harmless."""
    with contextlib.suppress(OSError):
        path.unlink()


def _fault(content: bytes, key: str, kind: str, name: str) -> str:
    """What is wrong with a file's content, to follow its name in a sentence; empty if nothing is."""
    if not content:
        return "is empty"
    if name.split(".")[1] != _checksum(content):
        return "is damaged: its content does not fit its checksum"
    try:
        mark = json.loads(_read_mark(io.BytesIO(content), kind))
        version, marked_key = mark["version"], mark["key"]
    except (OSError, ValueError, KeyError, TypeError):  # pyarrow's errors are among these
        return "is not a file of this store"
    if version != STORE_VERSION:
        return f"is of store version {version}, this code writes version {STORE_VERSION}"
    return "" if marked_key == key else "holds another unit than its name says"


def _read_mark(file: io.BufferedIOBase, kind: str) -> str:
    """The store's own metadata in a file, without reading the rest."""
    if kind == TABLE:
        return pq.read_schema(file).metadata[_MARK.encode()].decode()
    length = int.from_bytes(file.read(8), "little")
    return json.loads(file.read(min(length, 100_000_000)))["__metadata__"][_MARK]


def _label(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return str(json.loads(_read_mark(file, path.suffix[1:]))["label"])
    except FileNotFoundError:
        raise
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _dead(host: str, pid: int) -> bool:
    """Whether a process of this machine has ended."""
    if host != _HOST:
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except OSError:  # it lives, and is someone else's
        return False
    return False


def _old(path: Path) -> bool:
    try:
        return time.time() - path.stat().st_mtime > STALE_SECONDS
    except OSError:
        return False
