"""The description of the admin port, `/openapi.json` (OpenAPI 3.1).

One entry per endpoint; the schemas of the answers are in schemas.py. Tests compare the paths with
the served ones, and call the port with a client made from this document.
"""

import json
from collections.abc import Mapping
from functools import cache
from typing import Final, NotRequired, TypedDict

from proxy import __version__
from proxy.admin.schemas import Json, reference, schemas
from proxy.rules.orders import LONGEST_INTERVAL, LONGEST_SECONDS

PATH: Final = "/openapi.json"


class _Endpoint(TypedDict):
    """One operation; `answers` leaves out those that every operation may give."""

    summary: str
    answers: Mapping[str, Json]
    body: NotRequired[Json]


@cache
def document() -> bytes:
    """Return the description as JSON."""
    return json.dumps(
        {
            "openapi": "3.1.0",
            "info": {
                "title": "export-proxy admin port",
                "version": __version__,
                "description": "Metrics, health, status, and what operators can order.",
            },
            "paths": {path: _path(path, methods) for path, methods in _endpoints().items()},
            "components": {
                "schemas": schemas(),
                "securitySchemes": {
                    "adminToken": {
                        "type": "http",
                        "scheme": "bearer",
                        "description": "The token in `admin.token_file`; needed off loopback.",
                    }
                },
            },
        }
    ).encode()


def _endpoints() -> Mapping[str, Mapping[str, _Endpoint]]:
    """Return the operations of each path, by method in lower case."""
    unknown = {"404": _text("No such account; the text lists the known ones.")}
    token = {"200": _of("TokenState", "The state of the new token.")}
    orders = {
        "200": _of("Orders", "What the account obeys now."),
        **unknown,
        "408": {**_PROBLEM, "description": "The body came too slowly."},
        "413": {**_PROBLEM, "description": "The body is too large."},
        "422": _text("A field is wrong; the text names it."),
        "503": {
            **_PROBLEM,
            "description": "Too many bytes are waiting.",
            "headers": _RETRY_AFTER,
        },
    }
    return {
        "/": {
            "get": {
                "summary": "Redirect to the status page.",
                "answers": {"302": {"description": "To /status.", "headers": _LOCATION}},
            }
        },
        "/healthz": {"get": {"summary": "Is it alive?", "answers": {"200": _text("Yes.")}}},
        "/readyz": {
            "get": {
                "summary": "Does it serve?",
                "answers": {"200": _text("Yes."), "503": _text("No, and why.")},
            }
        },
        "/metrics": {
            "get": {
                "summary": "Metrics for Prometheus.",
                "answers": {"200": _METRICS},
            }
        },
        "/status": {
            "get": {
                "summary": "The status page.",
                "answers": {"200": _answer("A page for people.", "text/html", {"type": "string"})},
            }
        },
        "/status.json": {
            "get": {
                "summary": "The state of the accounts now.",
                "answers": {"200": _of("Status", "The accounts, all unconfigured ones as one.")},
            }
        },
        "/history.json": {
            "get": {
                "summary": "What was sent and held in the last ten minutes.",
                "answers": {"200": _of("History", "Sends and holds, by account.")},
            }
        },
        PATH: {
            "get": {
                "summary": "This description.",
                "answers": {"200": _answer("OpenAPI 3.1.", "application/json", {"type": "object"})},
            }
        },
        "/accounts/{name}": {
            "get": {
                "summary": "What `export-proxy explain` needs to explain a 403.",
                "answers": {"200": _of("Explanation", "Token, claims, routes."), **unknown},
            }
        },
        "/accounts/{name}/refresh": {
            "post": {
                "summary": "Mint a token now.",
                "answers": {
                    **token,
                    **unknown,
                    "429": {
                        **_text("A token was minted a moment ago."),
                        "headers": _RETRY_AFTER,
                    },
                    "502": _PROBLEM,
                    "503": {**_PROBLEM, "headers": _RETRY_AFTER},
                },
            }
        },
        "/accounts/{name}/pause": {
            "post": {
                "summary": "Send nothing for this account until it is resumed.",
                "body": _order({"for": _seconds(LONGEST_SECONDS)}),
                "answers": orders,
            }
        },
        "/accounts/{name}/resume": {
            "post": {"summary": "End the pause.", "body": _order({}), "answers": orders}
        },
        "/accounts/{name}/interval": {
            "post": {
                "summary": "Send at longer intervals for a while.",
                "body": _order(
                    {"seconds": _seconds(LONGEST_INTERVAL), "for": _seconds(LONGEST_SECONDS)},
                    required=("seconds", "for"),
                ),
                "answers": orders,
            }
        },
        "/-/reload": {
            "post": {
                "summary": "Read the configuration again.",
                "answers": {
                    "200": _text("The proxy uses it now."),
                    "404": _text("The proxy was not started from a file."),
                    "422": _text(
                        "It has errors, and the proxy keeps the old one: a line per problem."
                    ),
                },
            }
        },
    }


def _path(path: str, methods: Mapping[str, _Endpoint]) -> Json:
    item: Json = {method: _operation(method, one) for method, one in methods.items()}
    if "{name}" in path:
        item["parameters"] = [
            {
                "name": "name",
                "in": "path",
                "required": True,
                "description": "Name of a configured account.",
                "schema": {"type": "string", "minLength": 1},
            }
        ]
    return item


def _operation(method: str, endpoint: _Endpoint) -> Json:
    answers = {**_ALWAYS, **(_OF_ORDERS if method == "post" else {}), **endpoint["answers"]}
    if method == "post" and "404" in endpoint["answers"]:
        own = endpoint["answers"]["404"]["description"]
        answers["404"] = _text(f"{own} Also off loopback without a token file.")
    operation: Json = {"summary": endpoint["summary"], "responses": answers}
    if method == "post":
        operation["security"] = [{}, {"adminToken": []}]
    if "body" in endpoint:
        operation["requestBody"] = endpoint["body"]
    return operation


# The parts


def _answer(description: str, kind: str, schema: Json) -> Json:
    return {"description": description, "content": {kind: {"schema": schema}}}


def _text(description: str) -> Json:
    return _answer(description, "text/plain", {"type": "string"})


def _of(schema: str, description: str) -> Json:
    return _answer(description, "application/json", reference(schema))


def _order(properties: Json, *, required: tuple[str, ...] = ()) -> Json:
    schema: Json = {"type": "object", "properties": properties, "additionalProperties": False}
    if required:
        schema["required"] = list(required)
    return {"required": bool(required), "content": {"application/json": {"schema": schema}}}


def _seconds(most: float) -> Json:
    return {"type": "number", "exclusiveMinimum": 0, "maximum": most}


_LOCATION: Final[Json] = {"Location": {"schema": {"type": "string"}, "required": True}}
_RETRY_AFTER: Final[Json] = {
    "Retry-After": {"schema": {"type": "integer", "minimum": 1}, "required": True}
}
_PROBLEM: Final = _answer(
    "The problem says why.",
    "application/problem+json",
    reference("Problem"),
)
_METRICS: Final[Json] = {
    "description": "In the form that `Accept` asks for.",
    "content": {
        "text/plain": {"schema": {"type": "string"}},
        "application/openmetrics-text": {"schema": {"type": "string"}},
    },
}
_ALWAYS: Final[Mapping[str, Json]] = {
    "400": {**_PROBLEM, "description": "The request is malformed."},
    "403": _text("The Host is not known here, or the request comes from another site."),
    "431": {**_PROBLEM, "description": "The head of the request is too large."},
}
_OF_ORDERS: Final[Mapping[str, Json]] = {
    "401": {
        **_text("The admin token is needed."),
        "headers": {"WWW-Authenticate": {"schema": {"type": "string"}, "required": True}},
    },
    "404": _text("Off loopback without a token file."),
}
