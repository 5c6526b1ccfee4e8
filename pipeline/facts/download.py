"""`facts.path: download`: published fact files, fetched once into this user's cache and checked at each later use.

Meng et al. 2022 give CounterFact, known_1000 and zsRE's evaluation half out at rome.baulab.info, without checksums. So
the size and the SHA-256 of what was fetched first are written down beside it, and a file that is no longer that is
refused. Only stage `params` fetches; whatever reads facts later finds the file there.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from http.client import HTTPException, HTTPMessage, HTTPResponse
from pathlib import Path
from typing import IO, Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import (
    HTTPDefaultErrorHandler,
    HTTPErrorProcessor,
    HTTPRedirectHandler,
    HTTPSHandler,
    OpenerDirector,
    ProxyHandler,
    Request,
    UnknownHandler,
)

import platformdirs

from pipeline.disk import digest, write_bytes
from pipeline.errors import UserError, quoted
from pipeline.progress import say, track
from pipeline.settings.fields import DOWNLOAD
from pipeline.tables import read_record, write_json

PUBLISHED = {
    "counterfact": "https://rome.baulab.info/data/dsets/counterfact.json",
    "known_1000": "https://rome.baulab.info/data/dsets/known_1000.json",
    "zsre": "https://rome.baulab.info/data/dsets/zsre_mend_eval.json",
}
VARIABLE = "LOCALIZE_EDIT_FACTS"
MOST = 2**28  # bytes of a file; CounterFact has some 45 million
PATIENCE = 30.0  # seconds without a byte
LONGEST = 3600.0  # seconds for a whole file
_PIECE = 1 << 16  # bytes read at once
_MB = 10**6


def facts_folder() -> Path:
    """The folder that the environment variable names, else the one of this user's cache."""
    if named := os.environ.get(VARIABLE):
        return Path(named).expanduser().absolute()
    return platformdirs.user_cache_path("localize-and-edit", appauthor=False) / "facts"


def located(source: str, path: str) -> Path:
    """The file or folder of `facts.path`; of `download`, the published file of `source`, as it was fetched.

    Raises UserError where that is not there, or is not what was fetched.
    """
    if path != DOWNLOAD:
        return Path(path)
    file = _place(PUBLISHED[source], facts_folder())
    origin = _origin(file)
    if origin is None or not file.is_file():
        raise UserError(
            f"{file} is not there, which the stage params fetches for facts.path download; run `dvc repro -f params`, "
            f"or name in {VARIABLE} the folder that has it"
        )
    _check(file, origin)
    return file


def fetched(source: str, path: str) -> Path:
    """As `located`, but what `download` stands for is fetched first where it is not there."""
    if path != DOWNLOAD:
        return Path(path)
    return fetch(PUBLISHED[source], facts_folder(), secure())


def fetch(address: str, folder: Path, opener: OpenerDirector) -> Path:
    """The file of `address` in `folder`: fetched where it is not there, checked against its first fetching where it is.

    Beside it, NAME.origin.json has `address`, `bytes` and `sha256`. The file appears whole or not at all. Raises
    UserError, which says what to do, where it can't be fetched, is cut short, too large or no JSON list, and where it
    is not what was fetched first.
    """
    file = _place(address, folder)
    origin = _origin(file)
    if origin is not None and file.is_file():
        _check(file, origin)
        return file
    content = _read(address, file.name, opener)
    now = {"address": address, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    if origin is not None and any(now[key] != origin[key] for key in ("bytes", "sha256")):
        raise UserError(
            f"{address} gives {_told(now)}, but gave {_told(origin)} at first, by {_beside(file)}; delete that to use "
            "what it gives now, or name a copy of the first file in facts.path"
        )
    # The note first: a file without one would pass for whole, and nothing could tell.
    write_json(now, _beside(file))
    write_bytes(file, content)
    say(f"{file}: {_told(now)}")
    return file


def secure() -> OpenerDirector:
    """Opens addresses of https alone, wherever a server sends it on to; by a proxy where the environment names one."""
    opener = OpenerDirector()
    handlers = (ProxyHandler(), HTTPSHandler(), HttpsOnly(), HTTPErrorProcessor(), HTTPDefaultErrorHandler())
    for handler in (*handlers, UnknownHandler()):
        opener.add_handler(handler)
    return opener


class HttpsOnly(HTTPRedirectHandler):
    """Follows a server that sends on to an address of https, and no other."""

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> Request | None:
        if urlsplit(newurl).scheme != "https":
            raise URLError(f"it sends on to {quoted(newurl)}, which is not https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _place(address: str, folder: Path) -> Path:
    return folder / urlsplit(address).path.rpartition("/")[2]


def _beside(file: Path) -> Path:
    return file.with_suffix(".origin.json")


def _origin(file: Path) -> dict[str, Any] | None:
    """What was written down of the file when it was fetched; None where nothing was."""
    note = _beside(file)
    return read_record(note, address=str, bytes=int, sha256=str) if note.exists() else None


def _told(origin: dict[str, Any]) -> str:
    return f"{origin['bytes']} bytes with SHA-256 {origin['sha256']}"


def _check(file: Path, origin: dict[str, Any]) -> None:
    """Raise UserError unless the file is what was fetched."""
    found = {"bytes": file.stat().st_size, "sha256": digest(file)}
    if any(found[key] != origin[key] for key in found):
        raise UserError(
            f"{file} has {_told(found)}, but {_told(origin)} were fetched from {origin['address']}; delete it and run "
            "`dvc repro`, which fetches it again, or name a file of your own in facts.path"
        )


def _read(address: str, name: str, opener: OpenerDirector) -> bytes:
    """All that the address gives, which has to be a JSON list. UserError for whatever stands against it."""
    try:
        with opener.open(Request(address, headers={"User-Agent": "localize-and-edit"}), timeout=PATIENCE) as answer:
            content = _pieces(answer, name)
    except HTTPError as error:
        raise _refused(address, f"it answers {error.code} {error.reason}") from None
    except URLError as error:
        raise _refused(address, str(error.reason)) from None
    except (OSError, HTTPException, ValueError) as error:
        raise _refused(address, str(error).strip() or type(error).__name__) from None
    try:
        records = json.loads(content)
    except (ValueError, RecursionError):
        records = None
    if not isinstance(records, list):
        raise _refused(address, f"what it gives begins with {quoted(content[:40])} and is no JSON list of records")
    return content


def _pieces(answer: HTTPResponse, name: str) -> bytes:
    """The body of an answer, with its progress. Raises OSError where it is cut short, too large or too slow."""
    given = answer.headers.get("Content-Length", "")
    length = int(given) if given.isascii() and given.isdigit() else None
    if length is not None and length > MOST:
        raise OSError(f"it has {length} bytes, of which at most {MOST} are taken")
    content, end, told = bytearray(), time.monotonic() + LONGEST, 0
    with track(-(-(length or _MB) // _MB), f"fetching {name}", "MB") as progress:
        while piece := answer.read1(_PIECE):
            content += piece
            if len(content) > MOST:
                raise OSError(f"it has more than {MOST} bytes")
            if time.monotonic() > end:
                raise OSError(f"only {len(content)} bytes came within {LONGEST:g} s")
            whole = min(len(content) // _MB, progress.total)
            progress.advance(whole - told)
            told = whole
        if length is not None and len(content) < length:
            raise OSError(f"it broke off after {len(content)} of {length} bytes")
        progress.advance(progress.total - told)
    return bytes(content)


def _refused(address: str, why: str) -> UserError:
    return UserError(
        f"facts.path is download, but {address} can't be fetched ({' '.join(why.split())[:300]}); mend the connection, "
        "or fetch the file elsewhere and name it in facts.path"
    )
