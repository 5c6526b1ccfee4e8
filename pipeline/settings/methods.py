"""The section of an editing method in params.yaml, made from the dataclass of its settings.

The dataclass has one annotated field a key; the section has these, all needed, and `by_problem`, which may set them
again for one problem.
"""

from typing import Any, get_type_hints

from pydantic import ConfigDict, Field, create_model
from typing_extensions import TypedDict

from pipeline.settings.fields import PROBLEMS, Problem, choices
from pipeline.settings.sections import Section

_typed_dict: Any = TypedDict  # with a name and keys that no type checker can know


def method_section(name: str, settings: type) -> type[Section]:
    """The model of section `name`; `settings` is a frozen dataclass with fields annotated by types of `fields`."""
    keys = get_type_hints(settings, include_extras=True)
    overrides: Any = _typed_dict(f"{settings.__name__}Overrides", keys, total=False)
    overrides.__pydantic_config__ = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    described = Field(description=f"a mapping from {choices(PROBLEMS)} to keys of {name}, or {{}}")
    fields: dict[str, Any] = {key: (kind, ...) for key, kind in keys.items()}
    fields["by_problem"] = (dict[Problem, overrides], described)
    section: type[Section] = create_model(
        f"{settings.__name__}Section", __base__=Section, __doc__=settings.__doc__, **fields
    )
    return section
