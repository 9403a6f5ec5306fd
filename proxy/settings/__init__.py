"""The configuration: one YAML file and the environment become frozen values.

* `sections`: the keys, their defaults and what must agree between them
* `values`: what a single value must be
* `loading`: the file and the environment, read and checked
* `schema`: the same for editors, as JSON Schema

Reading a secret's file does not belong here: the user of a secret reads it again when it
rotates. The environment is an argument, never `os.environ`.
"""

from proxy.settings.loading import ConfigError, load, written_secrets
from proxy.settings.schema import schema
from proxy.settings.sections import (
    DEFAULT_ROUTES,
    Account,
    Admin,
    CallerKey,
    Channel,
    Identity,
    IncidentClose,
    Incidents,
    Limits,
    Listen,
    Log,
    Pacing,
    Quota,
    Repeats,
    Retry,
    Route,
    Settings,
    Store,
    Tls,
    Tokens,
    Upstream,
)

__all__ = [
    "DEFAULT_ROUTES",
    "Account",
    "Admin",
    "CallerKey",
    "Channel",
    "ConfigError",
    "Identity",
    "IncidentClose",
    "Incidents",
    "Limits",
    "Listen",
    "Log",
    "Pacing",
    "Quota",
    "Repeats",
    "Retry",
    "Route",
    "Settings",
    "Store",
    "Tls",
    "Tokens",
    "Upstream",
    "load",
    "schema",
    "written_secrets",
]
