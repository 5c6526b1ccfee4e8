"""Throw broken fact files at every reader: `make fuzz`, or python -m tests.facts.fuzz --seconds 300 --seed 7.

Each case is a valid file with a few mutations of its bytes, lines, columns or JSON values. Either it is read, and then
every fact is one that a run can use and the table of facts can be written; or UserError says in one sentence, which
names the file, what is wrong. Anything else is a finding, as are more than 10 seconds or 1 GB: it is printed with its
seed, its file stays in a temporary folder, and the exit status is 1. The same seed gives the same cases; --case N runs
one alone.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import io
import json
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import unicodedata
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import psutil

from pipeline.errors import UserError
from pipeline.facts.choose import facts_to_frame
from pipeline.facts.fact import Fact, FactFile, Known
from pipeline.facts.readers import read_fact_file
from pipeline.facts.reading import check_share, left_out_frame
from pipeline.tables import to_arrow
from tests.facts.broken import VALID, mutate

SECONDS, BYTES, SENTENCE = 10.0, 2**30, 1000  # most that a case may take; most characters of a sentence

# What has to hold


UNSEEN = re.compile(
    "[\\s\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\u2800\u3164\ufe00-\ufe0f\ufeff\uffa0]+"
)


def _seen(text: str) -> str:
    """The text without the characters that are not seen."""
    return UNSEEN.sub("", text)


def _clean(text: str, allowed: str = "") -> bool:
    """Visible, no space at an end, no control characters or halves of surrogates."""
    bad = any(unicodedata.category(c) in ("Cc", "Cs") and c not in allowed for c in text)
    return bool(_seen(text)) and text == text.strip(" ") and not bad


def _wraps_nothing(text: str) -> bool:
    """Whether a question is asked of which nothing is seen."""
    asked = re.fullmatch("Question:(.*)Answer:", text, re.DOTALL)
    return asked is not None and _seen(asked[1].replace("nq question:", "").replace("?", "")) == ""


def faults(read: FactFile) -> Iterator[str]:
    """What is wrong with facts that a reader let through."""
    for fact in read.facts:
        name = f"fact {fact.fact_id!r}"
        prompts = (fact.relation, fact.prompt, *fact.paraphrases, *fact.neighborhood)
        if not all(_clean(text) for text in (fact.subject, fact.target_true, fact.target_false, fact.fact_id)):
            yield f"{name} has a subject or target that is not clean"
        if not all(_clean(text, "\n\t") for text in prompts):
            yield f"{name} has a prompt that is not clean"
        if fact.source == "zsre" and any(map(_wraps_nothing, (fact.text, *fact.paraphrases, *fact.neighborhood))):
            yield f"{name} asks an empty question"
        if fact.prompt.count("{}") != 1 or not fact.text.startswith(fact.subject, fact.subject_at):
            yield f"{name} has no single place for its subject"
        if fact.target_true == fact.target_false:
            yield f"{name} has one target twice"
    for record in read.left_out:
        if not _seen(record.reason) or len(record.reason) > SENTENCE:
            yield f"record {record.record} is left out for the reason {record.reason[:300]!r}"
    ids = Counter(
        [fact.fact_id for fact in read.facts] + [record.fact_id for record in read.left_out if record.fact_id]
    )
    if repeated := [fact_id for fact_id, count in ids.items() if count > 1]:
        yield f"fact {repeated[0]!r} occurs twice"
    if not read.facts:
        yield "no facts, and nobody says so"


def judge(source: str, path: Path, seed: int) -> tuple[str, str]:
    """(read or refused, what is wrong with that); raises what the reader raises beside UserError."""
    try:
        read = read_fact_file(source, path, seed)
    except UserError as error:
        return "refused", sentence(str(error), path)
    facts: list[Fact] = read.facts
    to_arrow(
        facts_to_frame(facts, [Known(0.5, True, True)] * len(facts), [(True, "")] * len(facts), read.left_out)
    ).validate(full=True)
    return "read", next(faults(read), "") or next(miscounted(read, path), "")


def sentence(told: str, path: Path) -> str:
    """What is wrong with an error's sentence about the file."""
    if not all(c.isprintable() for c in told):
        return f"the sentence is not one plain line: {told[:300]!r}"
    if str(path) not in told:
        return f"the sentence does not name the file: {told[:300]}"
    return f"the sentence has {len(told)} characters: {told[:300]}" if len(told) > SENTENCE else ""


def miscounted(read: FactFile, path: Path) -> Iterator[str]:
    """What is wrong with the list of records left out, and with what is said of too many."""
    places = [record.record for record in read.left_out]
    if places != sorted(set(places)):
        yield f"records are left out twice, or not in their order: {places[:300]}"
    total = len(read.facts) + len(read.left_out)
    if path.is_file() and total != len(json.loads(path.read_bytes().decode("utf-8-sig"))):
        yield f"{len(read.facts)} facts and {len(read.left_out)} records left out are not all records"
    table = left_out_frame(read.left_out)
    again = pd.read_csv(io.StringIO(table.to_csv(index=False)), dtype=str, keep_default_na=False)
    if not again.equals(table.astype(str)):
        yield "the list of records left out is not what is read of its CSV file"
    broken = sum(record.fact_id == "" for record in read.left_out)
    share = broken / total
    for most in (0.0, 0.05, share, 1.0):
        try:
            check_share(path, read, most)
            stopped = False
        except UserError as error:
            stopped = True
            if wrong := sentence(str(error), path):
                yield wrong
        if stopped != (broken > most * total):
            yield f"{broken} of {total} records are broken, and a share of {most:g} does not tell"


class _TooLong(BaseException):
    """Not an Exception: no reader may swallow it."""


def _alarm(*_: Any) -> None:
    raise _TooLong


@contextlib.contextmanager
def limits() -> Iterator[None]:
    """Within: more than BYTES above now is a MemoryError, and `_alarm` is what the timer calls."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    handler = signal.signal(signal.SIGALRM, _alarm)
    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + BYTES, before[1]))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()
        resource.setrlimit(resource.RLIMIT_AS, before)
        signal.signal(signal.SIGALRM, handler)


def run_case(seed: int, case: int, folder: Path) -> tuple[str, str, str]:
    """(source, read or refused, finding) of one case, whose file is made in `folder`."""
    rng = random.Random(f"{seed} {case}")
    source = sorted(VALID)[case % len(VALID)]
    path = VALID[source](folder, rng)
    mutate(path, rng)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    # For code in C that does not let the alarm through.
    faulthandler.dump_traceback_later(2 * SECONDS, exit=True, file=2)
    try:
        outcome, finding = judge(source, path, rng.randrange(10))
    except _TooLong:
        outcome, finding = "slow", f"it takes more than {SECONDS:g} s"
    except Exception:  # whatever a reader may raise is what we look for
        outcome, finding = "raised", traceback.format_exc()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return source, outcome, finding


def fuzz(seconds: float, seed: int, only: int | None = None) -> int:
    """Run cases for so many seconds, or one; returns the exit status."""
    counts: Counter[str] = Counter()
    end, case = time.monotonic() + seconds, only or 0
    work = Path(tempfile.mkdtemp(prefix="fuzz-facts-"))
    print(f"seed {seed}, in {work}", flush=True)
    with limits():
        while True:
            folder = work / "case"
            folder.mkdir()
            source, outcome, finding = run_case(seed, case, folder)
            if finding:
                print(f"finding: {source}, --seed {seed} --case {case}, file in {folder}\n{finding}", flush=True)
                return 1
            shutil.rmtree(folder)
            counts[f"{source} {outcome}"] += 1
            case += 1
            if only is not None or time.monotonic() > end:
                break
    work.rmdir()
    print(f"{sum(counts.values())} cases: {', '.join(f'{name} {n}' for name, n in sorted(counts.items()))}", flush=True)
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    parser.add_argument("--case", type=int)
    asked = parser.parse_args()
    return fuzz(asked.seconds, asked.seed, asked.case)


if __name__ == "__main__":
    sys.exit(main())
