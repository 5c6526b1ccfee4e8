"""One sentence for whatever is wrong in a YAML file that pydantic models check.

It names the dotted key, what was found and what would be right. The last comes from the models themselves:
each field's `description` completes the sentence "KEY is FOUND but must be ...".
"""

import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from typing_extensions import is_typeddict

from pipeline.errors import UserError

WHOLE_FILE = "presets/default.yaml is a whole one"

# Beyond these the parser takes seconds, its time growing with the square of the open brackets.
MAX_CHARACTERS, MAX_BRACKETS = 50_000, 500


@dataclass(frozen=True)
class Key:
    """What the models say of one dotted key: what would be right there, and the keys below it."""

    hint: str
    below: tuple[str, ...]
    is_section: bool


def read_yaml(path: Path, most: int = MAX_CHARACTERS) -> Any:
    """The tree of a YAML 1.2 file, read by the library that DVC uses, so that both see the same values.

    Raises UserError for a file that cannot be read, is not UTF-8, is not YAML, holds a key twice or more than `most`
    characters.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; copy presets/default.yaml there") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8 text") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); it must be a readable text file") from None
    if len(text) > most:
        raise UserError(f"{path}: has {len(text)} characters but must have at most {most}; {WHOLE_FILE}")
    if (brackets := text.count("[") + text.count("{")) > MAX_BRACKETS:
        raise UserError(f"{path}: has {brackets} opening brackets but must have at most {MAX_BRACKETS}; {WHOLE_FILE}")
    try:
        return YAML(typ="safe", pure=True).load(text)
    except DuplicateKeyError as error:
        key = re.search(r'duplicate key "([^"]*)"', str(error.problem))
        name = key.group(1) if key else "a key"
        raise UserError(f"{path}: {name} is there twice ({_where(error)}); keep one of the two") from None
    except MarkedYAMLError as error:
        problem = " ".join(str(error.problem or error.context).split())
        raise UserError(
            f"{path}: {_where(error)} is not YAML ({problem}); write 'key: value' lines, indented by spaces"
        ) from None
    # ValueError: a date or a number that only looks like one; TypeError: a list as a key; RecursionError:
    # brackets within brackets without end.
    except (YAMLError, ValueError, TypeError, RecursionError) as error:
        problem = " ".join(str(error).split())[:120]
        raise UserError(f"{path}: the file is not YAML as meant ({problem}); {WHOLE_FILE}") from None


def sentence(error: ValidationError, root: type[BaseModel]) -> str:
    """What to tell of all that pydantic found in a tree checked against `root`, without the file's name."""
    keys = {"": Key("", tuple(root.model_fields), True), **dict(_keys(root, ""))}
    details = error.errors(include_url=False)
    # An unknown key before all else: a misspelt key is missing under its right name too.
    unknown = [detail for detail in details if _is_unknown(detail)]
    if unknown:
        return _tell_unknown(unknown[0], keys)
    first = _dotted(details[0], keys)[1]
    # Of the complaints of a union's branches, the one that got furthest into the value tells most.
    same = [detail for detail in details if _dotted(detail, keys)[1] == first]
    return _tell(max(same, key=lambda detail: (len(_dotted(detail, keys)[0]), detail["type"] == "twice")), keys)


def found(value: Any) -> str:
    """A value as a person wrote it, briefly; a collection by its kind only, as it may be endless."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        return "a mapping" if value else "an empty mapping"
    if isinstance(value, list | tuple | set):
        return "a list" if value else "an empty list"
    if isinstance(value, str):
        return f"the text {value[:60]!r}" + ("..." if len(value) > 60 else "")
    if isinstance(value, int) and abs(value) >= 10**18:
        return f"a number of {value.bit_length()} bits"
    return str(value)[:60]


def _where(error: MarkedYAMLError) -> str:
    mark = error.problem_mark or error.context_mark
    return f"line {mark.line + 1}, column {mark.column + 1}" if mark is not None else "the file"


def _keys(section: Any, prefix: str) -> Iterator[tuple[str, Key]]:
    """Every dotted key below a model or typed dict, sections included."""
    if is_typeddict(section):
        fields = {name: FieldInfo.from_annotation(kind) for name, kind in section.__annotations__.items()}
    else:
        fields = section.model_fields
    for name, info in fields.items():
        yield from _described(prefix + name, info.description, info.annotation)


def _described(dotted: str, description: str | None, annotation: Any) -> Iterator[tuple[str, Key]]:
    inner, names = _inner(annotation)
    below: tuple[str, ...] = ()
    if names:  # a mapping from these names to more settings
        below = names
        for name in names:
            yield from _described(f"{dotted}.{name}", None, inner)
    elif inner is not None:
        below = tuple(inner.__annotations__ if is_typeddict(inner) else inner.model_fields)
        yield from _keys(inner, f"{dotted}.")
    description = description or FieldInfo.from_annotation(annotation).description
    hint = description or f"a mapping with keys among {', '.join(below)}"
    yield dotted, Key(hint, below, isinstance(annotation, type) and issubclass(annotation, BaseModel))


def _inner(annotation: Any) -> tuple[Any, tuple[str, ...]]:
    """The settings that a field holds (or None), and the names where it maps names to settings."""
    if get_origin(annotation) is dict:
        names, settings = get_args(annotation)
        return settings, get_args(names)
    for candidate in (annotation, *get_args(annotation)):
        if is_typeddict(candidate) or (isinstance(candidate, type) and issubclass(candidate, BaseModel)):
            return candidate, ()
    return None, ()


def _is_unknown(detail: ErrorDetails) -> bool:
    return detail["type"] in ("extra_forbidden", "invalid_key") or detail["loc"][-1:] == ("[key]",)


def _dotted(detail: ErrorDetails, keys: Mapping[str, Key]) -> tuple[str, str]:
    """The dotted key of a complaint, with positions in lists and without; a union's branches left out."""
    where = field = ""
    for part in detail["loc"]:
        longer = f"{field}.{part}" if field else str(part)
        if isinstance(part, int):
            where += f"[{part}]"
        elif longer in keys:
            where = field = longer
    return where, field


def _tell(detail: ErrorDetails, keys: Mapping[str, Key]) -> str:
    where, field = _dotted(detail, keys)
    key, value = keys[field], detail["input"]
    if detail["type"] == "contradiction":
        return detail["msg"]
    if detail["type"] == "twice":
        return f"{where} {detail['msg']}"
    if detail["type"] == "missing" and key.is_section:
        return f"the section {field} is missing; add it with the keys {', '.join(key.below)}; {WHOLE_FILE}"
    if detail["type"] == "missing":
        return f"{field} is missing; it must be {key.hint}"
    told = f"{where} is {found(value)} but {'' if where == field else field + ' '}must be {key.hint}"
    if isinstance(value, str):
        near = difflib.get_close_matches(value, re.findall(r"[\w.]+", key.hint), n=1, cutoff=0.75)
        if near and near[0] != value:
            return f"{told}; did you mean {near[0]}?"
        if detail["type"] in ("int_type", "float_type", "bool_type") and re.fullmatch(r"[-+.\deE]+|true|false", value):
            return f"{told}, without quotes"
    return told


def _tell_unknown(detail: ErrorDetails, keys: Mapping[str, Key]) -> str:
    field = _dotted(detail, keys)[1]
    parts = [part for part in detail["loc"] if part != "[key]"]
    name = str(parts[-1])
    prefix = f"{field}." if field else ""
    shown = name if name.isprintable() and 0 < len(name) <= 60 else repr(name[:60])
    near = [prefix + other for other in difflib.get_close_matches(name, keys[field].below, n=1, cutoff=0.6)]
    elsewhere = sorted((key for key in keys if key.rpartition(".")[2] == name), key=lambda key: key.count("."))
    for meant in near + elsewhere:
        return f"{prefix}{shown} is no key of a params file; did you mean {meant}?"
    return (
        f"{prefix}{shown} is no key of a params file; the keys {'in ' + field if field else 'there'} are "
        f"{', '.join(keys[field].below)}"
    )
