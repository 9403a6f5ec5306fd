"""The JSON Schema of the configuration file, for editors that complete and check it.

It is the model's own schema, without titles that repeat the keys. Where a value is not text,
`${NAME}` is allowed too. It leaves out what only `load` can check: conflicts between keys, and
patterns of names.
"""

from typing import Any, Final

from proxy.settings.sections import Settings

_DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
_REFERENCE: Final = {"type": "string", "pattern": r"^\$\{[A-Za-z_][A-Za-z0-9_]*\}$"}
_NOT_TEXT: Final = frozenset({"boolean", "integer", "number"})
_ABOUT: Final = frozenset({"default", "description"})
_DROPPED: Final = frozenset({"title", "format", "writeOnly"})  # a secret is text like any other


def schema() -> dict[str, Any]:
    """Return the schema as a JSON document."""
    document = _cleaned(Settings.model_json_schema())
    return {"$schema": _DIALECT, "title": "export-proxy configuration", **document}


def _cleaned(node: Any) -> Any:
    """Return a schema, or a part of one, without what editors do not need."""
    if isinstance(node, list):
        return [_cleaned(item) for item in node]
    if not isinstance(node, dict):
        return node
    cleaned: dict[str, Any] = {}
    for keyword, value in node.items():
        if keyword in {"properties", "$defs"}:
            cleaned[keyword] = {name: _cleaned(part) for name, part in value.items()}
        elif keyword == "description":
            cleaned[keyword] = " ".join(value.split())
        elif keyword in {"default", "propertyNames"}:
            cleaned[keyword] = value
        elif keyword not in _DROPPED:
            cleaned[keyword] = _cleaned(value)
    return _or_reference(cleaned) if _is_no_text(cleaned) else cleaned


def _is_no_text(node: dict[str, Any]) -> bool:
    return node.get("type") in _NOT_TEXT or "enum" in node


def _or_reference(node: dict[str, Any]) -> dict[str, Any]:
    about = {key: value for key, value in node.items() if key in _ABOUT}
    what = {key: value for key, value in node.items() if key not in _ABOUT}
    return {**about, "anyOf": [what, _REFERENCE]}
