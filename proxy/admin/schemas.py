"""The schemas of the admin port's JSON answers.

Those about accounts are made from the dataclasses of the values.
"""

from typing import Any, Final

from pydantic import TypeAdapter

from proxy.problems import KINDS
from proxy.rules.advice import Note
from proxy.rules.state import AccountState, PauseState, SlowdownState, TokenState
from proxy.settings import Route

_REFERENCE: Final = "#/components/schemas/{model}"
Json = dict[str, Any]


def reference(schema: str) -> Json:
    """Refer to a schema of that name."""
    return {"$ref": _REFERENCE.format(model=schema)}


def schemas() -> Json:
    """Return the schemas of what is answered as JSON."""
    values: tuple[type, ...] = (AccountState, Note, TokenState, PauseState, SlowdownState, Route)
    schemas: Json = {}
    for value in values:
        made = TypeAdapter(value).json_schema(ref_template=_REFERENCE, mode="serialization")
        schemas |= made.pop("$defs", {})
        schemas[value.__name__] = made
    number, text = {"type": "number"}, {"type": "string"}
    notes = {"type": "array", "items": reference("Note")}
    account = {
        "allOf": [
            reference("AccountState"),
            _object({"level": text, "notes": notes}),
        ]
    }
    skew = {"type": "object", "additionalProperties": number}
    return schemas | {
        "Problem": _object(
            {
                "type": {"enum": [f"urn:export-proxy:{name}" for name in KINDS]},
                "title": text,
                "status": {"type": "integer"},
                "detail": text,
                "instance": text,
            }
        ),
        "Status": _object(
            {
                "version": text,
                "at": number,
                "state": {"enum": ["serving", "stalled", "not serving"]},
                "store_up": {"type": "boolean"},
                "clock_skew": skew,
                "observed": {"type": "array", "items": text},
                "connections": {"type": "integer"},
                "notes": notes,
                "accounts": {"type": "array", "items": account},
            }
        ),
        "History": _object(
            {
                "seconds": number,
                "span": number,
                "accounts": {
                    "type": "object",
                    "additionalProperties": _object(
                        {
                            "routes": {
                                "type": "object",
                                "additionalProperties": {"type": "array", "items": _TRIPLE},
                            },
                            "holds": {"type": "array", "items": _TRIPLE},
                        }
                    ),
                },
            }
        ),
        "Explanation": _object(
            {
                "name": text,
                "token": _or_null("TokenState"),
                "claims": {"type": "object", "additionalProperties": text},
                "clock_skew": skew,
                "routes": {
                    "type": "array",
                    "items": reference("Route"),
                },
            }
        ),
        "Orders": _object(
            {
                "name": text,
                "paused": _or_null("PauseState"),
                "slowed": _or_null("SlowdownState"),
                "interval": number,
                "all_replicas": {"type": "boolean"},
            }
        ),
    }


_TRIPLE: Final[Json] = {"type": "array", "minItems": 3, "maxItems": 3}


def _object(properties: Json) -> Json:
    return {"type": "object", "properties": properties, "required": [*properties]}


def _or_null(schema: str) -> Json:
    return {"anyOf": [reference(schema), {"type": "null"}]}
