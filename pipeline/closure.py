"""What a piece of code depends on in this project, found from the code itself.

`closure` follows the import statements, wherever they stand in a file, from the modules named to all that they reach;
`code_version` is a hash of what those files do. Imports under `if TYPE_CHECKING:` are not followed, as they do not run.
A comment, a docstring or the formatting changes no hash.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("pipeline", "stages")


def source(module: str, root: Path = ROOT) -> Path | None:
    """The file of a module or package of this project; None where there is none."""
    path = root.joinpath(*module.split("."))
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if module.split(".")[0] in PACKAGES and candidate.is_file():
            return candidate
    return None


def closure(*modules: str, root: Path = ROOT) -> dict[str, Path]:
    """Modules of this project that `modules` import, directly or not, with themselves; name to file, by name.

    Raises ValueError for a name among `modules` that is no module of the project.
    """
    found: dict[str, Path] = {}
    left = list(modules)
    for name in modules:
        if source(name, root) is None:
            raise ValueError(f"no source for module {name!r} below {root}")
    while left:
        name = left.pop()
        path = source(name, root)
        if name in found or path is None:
            continue
        found[name] = path
        package, _, _ = name.rpartition(".")
        left += [package] if package else []  # importing a.b runs a/__init__.py first
        left += _imported(path, name if path.name == "__init__.py" else package, _version(path))
    return dict(sorted(found.items()))


def code_version(*modules: str, root: Path = ROOT) -> str:
    """A hash (16 hex digits) of what the import closure of `modules` does."""
    digest = hashlib.sha256()
    for name, path in closure(*modules, root=root).items():
        digest.update(f"{name}\0{_meaning(path, _version(path))}\0".encode())
    return digest.hexdigest()[:16]


def _version(path: Path) -> tuple[int, int]:
    """What tells versions of a file apart while a process runs."""
    found = path.stat()
    return found.st_mtime_ns, found.st_size


@cache
def _meaning(path: Path, version: tuple[int, int]) -> str:
    """A file's syntax tree as text, without comments, docstrings and formatting."""
    tree = ast.parse(path.read_bytes())
    for node in ast.walk(tree):
        documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
        if isinstance(node, documented) and ast.get_docstring(node, clean=False) is not None:
            del node.body[0]
    return _plain(tree)


def _plain(node: object) -> str:
    """A syntax tree as text that is the same under every version of Python: empty fields, which come with new versions,
    are left out."""
    if isinstance(node, list):
        return f"[{','.join(map(_plain, node))}]"
    if not isinstance(node, ast.AST):
        return f"{type(node).__name__}:{node!r}"
    if isinstance(node, ast.JoinedStr):  # to which some versions add an empty text
        node.values = [part for part in node.values if getattr(part, "value", None) != ""]
    value = isinstance(node, ast.Constant)  # whose value may be None
    said = [(name, field) for name, field in ast.iter_fields(node) if value or (field is not None and field != [])]
    return f"{type(node).__name__}({','.join(f'{name}={_plain(field)}' for name, field in said if name != 'kind')})"


@cache
def _imported(path: Path, package: str, version: tuple[int, int]) -> tuple[str, ...]:
    """Names that a file imports, as of `_imports`."""
    return tuple(_imports(ast.parse(path.read_bytes()), package))


def _imports(tree: ast.AST, package: str) -> Iterator[str]:
    """Names that import statements below `tree` name; some are attributes of a module and not modules."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and _type_checking(node.test):
            for branch in node.orelse:
                yield from _imports(ast.Module([branch], []), package)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parent = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parent, *([base] if base else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)
        else:
            yield from _imports(node, package)


def _type_checking(test: ast.expr) -> bool:
    name = test.attr if isinstance(test, ast.Attribute) else test.id if isinstance(test, ast.Name) else ""
    return name == "TYPE_CHECKING"
