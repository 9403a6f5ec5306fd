"""The problems of a configuration as sentences: the key, and what it must be."""

from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from typing import Any, get_args

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from proxy.settings.sections import Loc, Section, Settings, dotted
from proxy.settings.values import EnvironmentText

Complaint = tuple[str, str]  # what is at fault, mostly a key, and what is wrong with it
_ALIKE = 0.75  # of 1: how much a name resembles a known one, for it to be suggested

_NO_LIST_OR_MAPPING = {
    "dict_type": "must be a mapping",
    "model_type": "must be a mapping",
    "tuple_type": "must be a list",
}
_COMPLAINTS = {
    **_NO_LIST_OR_MAPPING,
    "bool_parsing": "must be true or false",
    "extra_forbidden": "is not a known key",
    "finite_number": "must be a finite number",
    "float_parsing": "must be a number",
    "float_type": "must be a number",
    "int_from_float": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_parsing_size": "must be a whole number of a sensible size",
    "int_type": "must be a whole number",
    "invalid_key": "is not a known key",
    "missing": "is required",
    "path_type": "must be a file name",
    "string_too_short": "must not be empty",
    "string_type": "must be text, in quotes if need be",
    "too_short": "must not be empty",
}


def complaints(error: ValidationError) -> Iterator[Complaint]:
    """Yield what pydantic found, in our words: each names a key and quotes no value."""
    for detail in error.errors(include_url=False):
        loc = tuple(step for step in detail["loc"] if step != "[key]")
        yield dotted(loc), _complaint(detail)


def _keys_beside(loc: Loc) -> Iterable[str]:
    """Return the known keys of the section that holds `loc`; none if there is no section."""
    annotation: Any = Settings
    for step in loc[:-1]:
        sections = _all_sections_of(annotation)
        if not sections:
            return ()
        if isinstance(step, str):
            field = sections[0].model_fields.get(step)
            annotation = None if field is None else field.annotation
    sections = _all_sections_of(annotation)
    return sections[0].model_fields if sections else ()


def _all_sections_of(annotation: Any) -> list[type[Section]]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [found for inner in get_args(annotation) for found in _all_sections_of(inner)]


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return a question that suggests the most similar known name; empty if none is similar."""
    nearest = get_close_matches(name, list(known), n=1, cutoff=_ALIKE)
    return f"; did you mean {nearest[0]}?" if nearest else ""


def _complaint(detail: ErrorDetails) -> str:
    kind, value = detail["type"], detail["input"]
    if kind == "value_error":
        complaint = str(detail["ctx"]["error"])
    else:
        complaint = _COMPLAINTS.get(kind) or detail["msg"].replace("Input should", "must")
    if kind == "extra_forbidden":
        loc = detail["loc"]
        complaint += suggestion(str(loc[-1]), _keys_beside(loc))
    if not isinstance(value, EnvironmentText):
        return complaint
    encoding = ", as JSON" if kind in _NO_LIST_OR_MAPPING else ""
    return f"{complaint}{encoding} (it comes from {value.variable})"
