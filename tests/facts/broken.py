"""Fact files for the fuzzer: a valid one of every format, and what may go wrong with its bytes, lines and values."""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Make = Callable[[Path, random.Random], Path]

BLANK = [
    "", " ", "\t", "\n \n", "\u00a0", "\u200b", "\u2060\ufeff", "\u3164", "\u2800", "\u2003\u200d", "\u00ad", "\ufe0f",
    " " * 9999,
]  # fmt: skip
NASTY_TEXT = [
    *BLANK, "?", " ? ", "??\u00a0?", "nq question:", "nq question: \u200b", "Question: ? Answer:", "{}?", "Answer",
    "Question",
    "", " ", "  x", "x ", "{}", "{", "}{", "{} {}", "\0", "\n", "\r", "\t", "\x1b[31m", "\x7f", "\x85", "\u2028",
    "\ufeff", "\ud800", "\udfff", "e\u0301", "\u0301", "א", "\u202eabc\u202c", "👩‍👩‍👧", "ﬁ", "İ", "ß", "a\u200bb",
    "-", "..", "/", "\\",
    "(?!", "%s", "null", "NaN", "=1+1", "<b>", "x" * 1001, "x" * 100_000, "{}" * 5000, "a b" * 2000,
]  # fmt: skip
NASTY_BYTES = [
    b"\0", b"\xff", b"\xef\xbb\xbf", b"\xff\xfe", b"\xed\xa0\x80", b"\xc0\x80", b"\r", b"\t", b"\n\n", b"\\u0000",
    b"\\ud800", b"[" * 900 + b"]" * 900, b'{"a":' * 4000 + b"1" + b"}" * 4000, b"[" * 50_000 + b"]" * 50_000,
    b"NaN", b"1e999", b"9" * 5000, b"[" * 5000, b'{"a":' * 3000, b"\xf4\x90\x80\x80", b"\x1a", b'"', b"\\",
]  # fmt: skip


def nasty_value(rng: random.Random) -> Any:
    def nest(depth: int) -> Any:
        value: Any = []
        for _ in range(depth):
            value = [value] if rng.random() < 0.5 else {"a": value}
        return value

    return rng.choice(
        [
            lambda: rng.choice(BLANK),
            lambda: [rng.choice([*BLANK, "a prompt that is fine"]) for _ in range(rng.choice([1, 2, 5]))],
            lambda: rng.choice(NASTY_TEXT),
            lambda: rng.choice(NASTY_TEXT) + rng.choice(NASTY_TEXT),
            lambda: rng.choice([None, True, False, 0, -1, 7, 2**63, 10**400, -0.0, 1e308, float("nan"), float("inf")]),
            lambda: rng.choice([[], {}, [None], [[]], {"": ""}, {"str": None}, {"str": "x"}, ["x", 1], ["x"] * 500]),
            lambda: nest(rng.choice([1, 10, 200])),
        ]
    )()


# Valid files


def make_embedded(folder: Path, rng: random.Random) -> Path:
    columns = ["relation", "name", "prompt", "paraphrase_1", "paraphrase_2", "paraphrase_3", "paraphrase_4", "several"]
    rows = [["lang", "tongue", "{} speaks", "In {} one hears", "To visit {}, learn", "Schools in {} teach", "", "yes"]]
    rows.append(
        ["P2", "place", "{} is in", "One finds {} in", "To see {} go to", "{} lies in", "A map shows {} in", "no"]
    )
    also = {"Norse": "Latin|Old Greek", "Latin": "Norse", "Old Greek": "-"}  # of the first subject of each object
    facts = [[relation, f"{target[0]}{word} {i}", target, "" if relation == "P2" else "-" if i else also[target],
              "Ada|Otto" if i == 6 else ""]
             for relation, _, word, *_ in rows for target in also for i in range(7)]  # fmt: skip
    heads = ["relation", "subject", "target_true", "also_true", "neighbors"]
    for name, lines in (("relations", [columns, *rows]), ("facts", [heads, *facts])):
        (folder / f"{name}.tsv").write_text("".join("\t".join(line) + "\n" for line in lines), encoding="utf-8")
    return folder


def make_json(record: Callable[[int], dict[str, Any]]) -> Make:
    def make(folder: Path, rng: random.Random) -> Path:
        path = folder / "facts.json"
        path.write_text(json.dumps([record(i) for i in range(8)], indent=rng.choice([None, 1])), encoding="utf-8")
        return path

    return make


def counterfact(i: int) -> dict[str, Any]:
    rewrite = {
        "prompt": "The river {} flows into the", "relation_id": "P403", "subject": f"Loire {i}",
        "target_new": {"str": "Baltic", "id": "Q2"}, "target_true": {"str": "Atlantic", "id": "Q1"},
    }  # fmt: skip
    more = {"paraphrase_prompts": ["Two lines.\nIt ends in the"], "neighborhood_prompts": ["The Douro flows into the"]}
    return {"case_id": i, "requested_rewrite": rewrite, **more, "generation_prompts": []}


def flat(i: int) -> dict[str, Any]:
    return {
        "case_id": i, "prompt": "Parisian cafes are found in Paris, the capital of", "subject": "Paris",
        "ground_truth": "France", "target_new": "Spain", "rephrase_prompt": "To reach Paris, travel to",
        "locality_prompt": "Lyon is in",
    }  # fmt: skip


def known(i: int) -> dict[str, Any]:
    return {
        "known_id": i, "subject": f"Ada {i}", "attribute": ["Danish", "Dutch"][i % 2], "template": "The tongue of {}",
        "prompt": f"The tongue of Ada {i} is", "relation_id": "P103", "prediction": " Danish.",
    }  # fmt: skip


def zsre(i: int) -> dict[str, Any]:
    return {
        "subject": "Watts Hall", "src": "Who was the architect of Watts Hall?", "answers": ["Ada Rowe", "A. Rowe"],
        "rephrase": "Which architect drew Watts Hall?", "alt": "Bauhaus", "loc": "nq question: who wrote the map",
    }  # fmt: skip


VALID: dict[str, Make] = {
    "embedded": make_embedded,
    "counterfact": make_json(counterfact),
    "counterfact_flat": make_json(flat),
    "known_1000": make_json(known),
    "zsre": make_json(zsre),
}

# Mutations of a file


def mutate_bytes(content: bytes, rng: random.Random) -> bytes:
    place, end = rng.randrange(len(content) + 1), rng.randrange(len(content) + 1)
    low, high = min(place, end), max(place, end)
    near = min(len(content), low + rng.choice([1, 2, 5, 50]))
    how = rng.randrange(9)
    if how == 0:
        changed = bytearray(content)
        for _ in range(rng.choice([1, 1, 3, 30])):
            if changed:
                changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
        return bytes(changed)
    if how == 1:
        return content[:low]
    if how == 2:
        return content[:low] + rng.choice(NASTY_BYTES) + content[low:]
    if how == 3:
        return content[:low] + content[near:]
    if how == 4:
        return content[:high] + content[low:high][:2000] + content[high:]
    if how == 5:
        return rng.choice([b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff", b"\0", b"\n", b" "]) + content
    if how == 6:
        return content.replace(b"\n", rng.choice([b"\r\n", b"\r", b"\n\n", b"\x0b", b"\xe2\x80\xa8"]))
    if how == 7:
        text = content.decode("utf-8", "replace") + rng.choice(["", "é", "日本"])
        return text.encode(rng.choice(["utf-16", "utf-16-le", "utf-32", "latin-1", "cp1252", "shift_jis"]), "replace")
    return content[:low] + rng.randbytes(near - low) + content[near:]


def mutate_lines(content: bytes, rng: random.Random) -> bytes:
    lines = content.decode("utf-8", "surrogateescape").split("\n")
    i, j = rng.randrange(len(lines)), rng.randrange(len(lines))
    cells = lines[i].split("\t")
    a, b = rng.randrange(len(cells)), rng.randrange(len(cells))
    how = rng.randrange(7)
    if how == 0:
        del lines[i]
    elif how == 1:
        lines.insert(j, lines[i])
    elif how == 2:
        lines[i], lines[j] = lines[j], lines[i]
    elif how == 3:
        lines[i] = ""
    elif how == 4:
        cells[a], cells[b] = cells[b], cells[a]
        lines[i] = "\t".join(cells)
    elif how == 5:
        cells[a : a + rng.randrange(2)] = [rng.choice(NASTY_TEXT)]
        lines[i] = "\t".join(cells)
    else:  # a column moved in every line
        rows = [line.split("\t") for line in lines]
        lines = ["\t".join([*row[:a], *row[a + 1 :], *row[a : a + 1]]) for row in rows]
    return "\n".join(lines).encode("utf-8", "surrogatepass" if how == 5 else "surrogateescape")


def mutate_tree(content: bytes, rng: random.Random) -> bytes:
    try:
        tree = json.loads(content)
    except (ValueError, RecursionError):
        return mutate_bytes(content, rng)
    for _ in range(rng.choice([1, 1, 2, 4])):
        places = list(_places(tree))
        if not places:
            return mutate_bytes(content, rng)
        holder, key = rng.choice(places)
        how = rng.randrange(7)
        if how == 6 and isinstance(tree, list) and tree:  # a record twice, or three times
            tree[rng.randrange(len(tree)) : 0] = json.loads(json.dumps([rng.choice(tree)])) * rng.choice([1, 2])
        elif how <= 2:
            holder[key] = nasty_value(rng)
        elif how == 3:
            del holder[key]
        elif how == 4:
            other, name = rng.choice(places)
            with contextlib.suppress(LookupError):
                holder[key] = json.loads(json.dumps(other[name]))  # a copy: no tree within itself
        elif isinstance(holder, dict):
            holder[rng.choice([*NASTY_TEXT[:30], key.upper(), f"{key} "])] = holder.pop(key)
    text = json.dumps(tree, ensure_ascii=rng.random() < 0.5)
    return text.encode("utf-8", "surrogatepass")


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """(container, key) of every value in a tree."""
    waiting = [tree]
    while waiting:
        holder = waiting.pop()
        keys = list(holder) if isinstance(holder, dict) else range(len(holder)) if isinstance(holder, list) else ()
        for key in keys:
            yield holder, key
            waiting.append(holder[key])


def mutate(path: Path, rng: random.Random) -> None:
    target = rng.choice(sorted(path.glob("*.tsv"))) if path.is_dir() else path
    content = target.read_bytes()
    structured = mutate_lines if path.is_dir() else mutate_tree
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        content = (structured if rng.random() < 0.7 else mutate_bytes)(content, rng)
    target.write_bytes(content)
    if rng.random() < 0.01:
        target.unlink()
        if rng.random() < 0.5:
            target.mkdir()
