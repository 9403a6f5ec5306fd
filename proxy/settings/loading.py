"""The configuration file and the environment, read into one `Settings`.

* The environment overrides the file: `EXPORT_PROXY__PACING__INTERVAL=0.25`. It gives a list as a
  whole, as JSON; `null` unsets a key that may be null. A name that overrides nothing is a problem.
* `${NAME}` in a value of the file is replaced from the environment; `$${` is a plain `${`.
* A number in the file is a number. Only text out of the environment is read as one.
* A problem names the key and never quotes the value, since any value may hold a secret.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, cast, get_args, get_origin

import yaml
from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, EnvSettingsSource
from pydantic_settings.sources.utils import parse_env_vars
from yaml.scanner import ScannerError

from proxy.settings.complaints import Complaint, complaints, suggestion
from proxy.settings.sections import Loc, Section, Settings, dotted
from proxy.settings.values import EnvironmentText, PlainWord

_PREFIX = "EXPORT_PROXY__"
_DELIMITER = "__"

# Keys that may hold a secret, and what one looks like there.
_PASSWORD: Final = re.compile(r"//[^/@]*:[^/@]+@")
_SECRETS: Final = {"client_secret": re.compile("."), "url": _PASSWORD, "proxy_url": _PASSWORD}


class ConfigError(Exception):
    """The configuration cannot be used.

    `problems` holds a line for each: `accounts[0].name: what is wrong`.
    """

    def __init__(self, problems: tuple[str, ...]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


def _read_text(path: Path) -> str:
    return path.read_text(encoding="utf-8")  # at the start it may be a pipe, and take its time


def load(
    path: Path, environ: Mapping[str, str], *, read: Callable[[Path], str] = _read_text
) -> Settings:
    """Read the configuration file, and let the environment override it.

    Raises ConfigError with every problem that can be found at once.
    """
    document, problems = _read_file(path, environ, read)
    overrides, unknown = _read_environment(environ)
    problems += unknown
    try:
        settings = Settings.model_validate(_merged(document, overrides))
    except ValidationError as error:
        problems += complaints(error)
    if problems:
        # Raised outside the except clause: a chained error would carry the values along.
        raise ConfigError(_lines(problems))
    return settings


def written_secrets(path: Path, environ: Mapping[str, str]) -> tuple[str, ...]:
    """Return the keys whose secret is in the file itself, as plain text.

    For a file that `load` has read.
    """
    document, _ = _read_file(path, environ, _read_text)
    return tuple(_written(document, ()))


def _written(value: object, loc: Loc) -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _written(inner, (*loc, str(key)))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _written(inner, (*loc, index))
    elif isinstance(value, str) and not isinstance(value, EnvironmentText):
        pattern = _SECRETS.get(str(loc[-1])) if loc else None
        if pattern is not None and pattern.search(value):
            yield dotted(loc)


def _lines(problems: list[Complaint]) -> tuple[str, ...]:
    first: dict[str, str] = {}
    for place, complaint in problems:
        # What else is wrong with a key follows from the first: its variable is not set, say.
        first.setdefault(place, complaint)
    return tuple(f"{place}: {complaint}" for place, complaint in first.items())


def _merged(below: dict[Any, Any], above: dict[str, Any]) -> dict[Any, Any]:
    merged = below | above
    for key in below.keys() & above.keys():
        if isinstance(below[key], dict) and isinstance(above[key], dict):
            merged[key] = _merged(below[key], above[key])
    return merged


# The file.


def _read_file(
    path: Path, environ: Mapping[str, str], read: Callable[[Path], str]
) -> tuple[dict[Any, Any], list[Complaint]]:
    document: object = None
    problems: list[Complaint] = []
    fault = "must hold a mapping of sections"
    try:
        loader = yaml.SafeLoader(read(path))
        root = loader.get_single_node()
        if root is not None:
            problems += _prepare(root, (), environ, seen=set())
            document = loader.construct_document(root)
    except OSError as error:
        fault = f"cannot be read: {error.strerror}"
    except UnicodeDecodeError:
        fault = "is not UTF-8 text"
    except RecursionError:
        fault = "is nested too deeply"
    except (yaml.YAMLError, ValueError) as error:
        fault = _yaml_fault(error)
    if not isinstance(document, dict):
        raise ConfigError((f"{path}: {fault}",))
    return document, problems


def _yaml_fault(error: yaml.YAMLError | ValueError) -> str:
    mark = error.problem_mark if isinstance(error, yaml.MarkedYAMLError) else None
    where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    # Other kinds quote the names of tags and anchors, and an unquoted secret may look like one.
    reason = f": {error.problem}" if isinstance(error, ScannerError) else ""
    return f"is not valid YAML{where}{reason}"


def _prepare(
    node: yaml.Node, loc: Loc, environ: Mapping[str, str], *, seen: set[int]
) -> Iterator[Complaint]:
    """Replace references in the text below `node`, in place, and report keys that come twice.

    PyYAML silently keeps the last of equal keys. `seen` holds the nodes that an alias may repeat.
    """
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.ScalarNode):
        yield from ((dotted(loc), complaint) for complaint in _prepare_scalar(node, environ))
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield from _prepare(item, (*loc, index), environ, seen=seen)
    elif isinstance(node, yaml.MappingNode):
        lines: dict[str, int] = {}
        for key, value in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if name in lines:
                complaint = f"is given twice, in lines {lines[name]} and {line}"
                yield dotted((*loc, name)), complaint
            lines[name] = line
            yield from _prepare(value, (*loc, name), environ, seen=seen)


_BOOLEANS: Final = frozenset({"true", "false"})
_TRAPS: Final = {
    re.compile(r"[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+(?:\.[0-9_]*)?"): (
        "looks like a time of day, which YAML 1.1 reads as a number in base 60:"
        " write seconds, or quote it"
    ),
    re.compile(r"[-+]?0[0-9_]+"): (
        "starts with 0, which YAML 1.1 reads as an octal number: leave the 0 out, or quote it"
    ),
}


def _prepare_scalar(node: yaml.ScalarNode, environ: Mapping[str, str]) -> list[str]:
    """Replace references, keep words such as `off`, and report misleading numbers."""
    if node.tag == "tag:yaml.org,2002:str":
        node.value, complaints = _replaced(node.value, environ)
        return complaints
    if node.tag == "tag:yaml.org,2002:bool" and node.value.lower() not in _BOOLEANS:
        node.tag, node.value = "tag:yaml.org,2002:str", PlainWord(node.value.lower())
    elif node.tag in {"tag:yaml.org,2002:int", "tag:yaml.org,2002:float"}:
        return [why for trap, why in _TRAPS.items() if trap.fullmatch(node.value)]
    return []


_REFERENCE = re.compile(r"\$\$\{|\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)\}|\$\{")


def _replaced(text: str, environ: Mapping[str, str]) -> tuple[str, list[str]]:
    used: list[str] = []
    complaints: list[str] = []

    def value_of(reference: re.Match[str]) -> str:
        name = reference["name"]
        if reference[0] == "$${":
            return "${"
        if name is None:
            complaints.append("has a '${' without a NAME and a '}'; a plain one is written '$${'")
        elif name not in environ:
            complaints.append(f"the environment variable {name} is not set")
        else:
            used.append(name)
            return environ[name]
        return reference[0]

    filled = _REFERENCE.sub(value_of, text)
    return (EnvironmentText.of(used[0], filled) if used else filled), complaints


# The environment.


class _Overrides(EnvSettingsSource):
    """Reads the variables it is given, where pydantic-settings would read those of the process."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        self._variables = variables
        super().__init__(
            cast("type[BaseSettings]", Settings),  # of which it uses the fields alone
            env_prefix=_PREFIX,
            env_nested_delimiter=_DELIMITER,
            env_parse_none_str="null",
        )

    def _load_env_vars(self) -> Mapping[str, str | None]:
        marked = {name: EnvironmentText.of(name, text) for name, text in self._variables.items()}
        return parse_env_vars(marked, parse_none_str=self.env_parse_none_str)

    def decode_complex_value(self, field_name: str, field: FieldInfo, value: Any) -> Any:
        try:
            return super().decode_complex_value(field_name, field, value)
        except (ValueError, RecursionError):
            return value  # text where a list or a mapping must be: validation says so


def _read_environment(environ: Mapping[str, str]) -> tuple[dict[str, Any], list[Complaint]]:
    ours = {name: text for name, text in environ.items() if name.upper().startswith(_PREFIX)}
    names = list(_variables(Settings, ""))
    known = {f"{_PREFIX}{name}" for name in names}
    problems = [
        (name, f"overrides nothing{suggestion(name.upper().removeprefix(_PREFIX), names)}")
        for name in ours
        if name.upper() not in known
    ]
    first: dict[str, str] = {}
    for name in ours:
        other = first.setdefault(name.upper(), name)
        if other != name:
            problems.append((name, f"is the same key as {other}, in another case: unset one"))
    return _Overrides({name: ours[name] for name in ours if name.upper() in known})(), problems


def _variables(section: type[Section], prefix: str) -> Iterator[str]:
    for key, field in section.model_fields.items():
        name = f"{prefix}{key.upper()}"
        yield name
        for inner in _sections_of(field.annotation):
            yield from _variables(inner, f"{name}{_DELIMITER}")


def _sections_of(annotation: Any) -> list[type[Section]]:
    kinds = () if get_origin(annotation) is tuple else (annotation, *get_args(annotation))
    return [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Section)]
