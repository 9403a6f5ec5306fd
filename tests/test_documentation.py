"""What the documentation says of the code is made from the code, and its links lead somewhere."""

import json
import re
from importlib import import_module
from inspect import signature
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args
from unittest.mock import Mock
from xml.etree import ElementTree as ET

import jsonschema
import pytest
import typer
import yaml
from typer.core import TyperGroup
from typer.testing import CliRunner

from proxy.admin.server import Admin
from proxy.cli.commands import _cli
from proxy.rules.refresh import Reason
from proxy.settings import Account
from tests.kit.proxy import settings_for
from tools.mutation import PAGE as MUTATION_PAGE
from tools.mutation import explained
from tools.tables import ROOT, documents, generated

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
SVG = "{http://www.w3.org/2000/svg}"
OPERATIONS = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
EDITOR_LINE = re.compile(r"# yaml-language-server: \$schema=(\S+)\n")


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft202012Validator:
    document = json.loads((ROOT / "config" / "proxy.schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(document)
    return jsonschema.Draft202012Validator(document)


@pytest.mark.parametrize("path", documents(), ids=lambda path: path.name)
def test_a_generated_file_is_what_the_code_makes_of_it(path: Path) -> None:
    """`make docs` writes them."""
    assert path.read_text(encoding="utf-8") == documents()[path]


@pytest.mark.parametrize(
    ("page", "row"),
    [
        (
            "configuration",
            "| `pacing.interval` | `0.5` | Seconds between two sends of one account on one paced",
        ),
        ("configuration", '| `routes[].on_nested` | `"warn"` | '),
        ("metrics", "| `queue_wait_seconds` | histogram | `account`, `route`, `outcome` | "),
        (
            "metrics",
            "| `requests_total` | counter | `account`, `route`, `method`, `code`, `origin` | ",
        ),
        ("answers", "| `outcome-unknown` | 502, 504 | no | "),
        ("answers", "| `missing-scope` | 403 | while "),
    ],
)
def test_the_pages_have_what_operators_rely_on(page: str, row: str) -> None:
    assert f"\n{row}" in (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")


def test_a_page_without_its_markers_is_refused() -> None:
    with pytest.raises(ValueError, match="there must be a part between"):
        generated("# A page\n", "metrics", "")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_to_a_file_or_a_heading_leads_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        file, _, heading = target.partition("#")
        if file.startswith("http"):
            continue
        path = (page.parent / file) if file else page
        if not path.exists() or (heading and heading not in headings(path)):
            broken.append(target)
    assert broken == []


def headings(page: Path) -> set[str]:
    """The anchors of a page, as code hosts make them."""
    lines = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", line.lower()).replace(" ", "-") for line in lines}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_make_target_named_exists(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    text = page.read_text(encoding="utf-8")
    named = set(re.findall(r"(?:^|`)make ([a-z-]+)", text, re.MULTILINE))
    assert named - targets == set()


# The schema


def test_the_command_prints_the_schema_that_is_shipped() -> None:
    printed = CliRunner().invoke(_cli, ["schema"]).stdout
    assert printed == (ROOT / "config" / "proxy.schema.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["proxy.yaml", "demo.yaml", "cluster/proxy.yaml"])
def test_what_is_shipped_conforms_and_editors_find_the_schema(
    validator: jsonschema.Draft202012Validator, name: str
) -> None:
    path = ROOT / "config" / name
    text = path.read_text(encoding="utf-8")
    validator.validate(yaml.safe_load(text))
    line = EDITOR_LINE.match(text)
    assert line is not None
    assert (path.parent / line[1]).resolve() == ROOT / "config" / "proxy.schema.json"


UPSTREAM = {"api_url": "https://a", "login_url": "https://l"}
ACCOUNT = {"name": "a", "client_id": "c", "client_secret": "${SECRET}", "interval": "${PACE}"}
FINE = [
    {"pacing": {"interval": 0.25, "max_queue": "${QUEUE}"}},
    {"listen": {"tls": {"cert_file": "c.pem", "key_file": "k.pem"}}},
    {"accounts": [ACCOUNT], "log": {"format": "${FORMAT}"}},
    {"routes": [{"name": "r", "paths": ["/**"], "require_scopes": {"POST": ["s"]}}]},
]
WRONG = [
    {"pacing": {"pace": 0.25}},
    {"pacing": {"interval": 0}},
    {"pacing": {"interval": "fast"}},
    {"pacing": {"max_queue": "x${QUEUE}"}},
    {"identity": {"unidentified": "allow"}},
    {"accounts": [{"name": "a"}]},
    {"routes": [{"name": "r", "paths": ["/**"], "require_scopes": {"FETCH": ["s"]}}]},
    {"upstream": {"api_url": "https://a"}},
]


@pytest.mark.parametrize("document", FINE)
def test_an_editor_accepts_what_the_program_accepts(
    validator: jsonschema.Draft202012Validator, document: dict[str, Any]
) -> None:
    assert validator.is_valid({"upstream": UPSTREAM, **document})


@pytest.mark.parametrize("document", WRONG)
def test_an_editor_marks_what_the_program_refuses(
    validator: jsonschema.Draft202012Validator, document: dict[str, Any]
) -> None:
    assert not validator.is_valid({"upstream": UPSTREAM, **document})


def test_every_key_is_described_and_nothing_else_repeats_it(
    validator: jsonschema.Draft202012Validator,
) -> None:
    document = validator.schema
    assert isinstance(document, dict)
    sections = [document, *document["$defs"].values()]
    keys = [(name, key) for section in sections for name, key in section["properties"].items()]
    assert [name for name, key in keys if not key.get("description")] == []
    assert not [name for name, key in keys if key.keys() & {"title", "format", "writeOnly"}]


def test_the_architecture_says_what_lives_in_each_module() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    parts = [path for path in (ROOT / "proxy").iterdir() if not path.name.startswith("_")]
    modules = [path.name for path in parts if path.suffix == ".py"]
    packages = [path for path in parts if (path / "__init__.py").exists()]
    inner = [
        f"{path.parent.name}/{path.name}"
        for package in packages
        if package.name not in {"demo", "simulator"}
        for path in package.glob("*.py")
        if not path.name.startswith("_")
    ]
    assert len(inner) > 30
    names = [*modules, *(f"{package.name}/" for package in packages), *inner]
    assert [name for name in names if f"`{name}`" not in page] == []


# What is listed by hand


def test_the_page_lists_what_the_admin_port_serves() -> None:
    settings = settings_for("http://localhost")
    parts = [name for name in signature(Admin).parameters if name != "settings"]
    endpoints = Admin(settings, **dict.fromkeys(parts, Mock())).endpoints
    served = {f"{one.method} {one.path}" for one in endpoints.all}
    table = OPERATIONS.replace("/NAME", "/{name}").partition("## The admin port\n")[2]
    rows = re.findall(r"^\| (`(?:GET|POST) .*?) \|", table, re.MULTILINE)
    assert {one for row in rows for one in re.findall(r"`(.*?)`", row)} == served


def test_the_page_lists_every_option() -> None:
    commands = typer.main.get_command(_cli)
    assert isinstance(commands, TyperGroup)
    missing = [
        (name, option)
        for name, command in commands.commands.items()
        for parameter in command.params
        for option in parameter.opts
        if option.startswith("--") and not re.search(rf"`{name} [^`|]*{option}\b", OPERATIONS)
    ]
    assert missing == []


@pytest.mark.parametrize(
    "value", [*get_args(Reason), "rate_limited", "stale_token", "unreachable", "abandoned"]
)
def test_the_page_lists_the_values_of_labels(value: str) -> None:
    assert f"`{value}`" in OPERATIONS


def test_the_account_of_the_security_page_is_one() -> None:
    page = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    (text,) = re.findall(r"^```yaml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    (account,) = yaml.safe_load(text)["accounts"]
    assert Account.model_validate(account).is_managed


# What was measured


def test_the_picture_shows_the_pace() -> None:
    """The second row: twelve accepted, none less than an interval after the one before."""
    picture = ET.parse(ROOT / "docs" / "pace.svg")  # noqa: S314 -- our own file
    (background,) = picture.iterfind(f"{SVG}rect")
    assert background.get("class") == "background"
    assert picture.findtext(f"{SVG}style", "").count(".background { fill: ") == 2  # light and dark
    rows: dict[str, list[tuple[float, int]]] = {}
    for circle in picture.iterfind(f"{SVG}circle"):
        at, status = str(circle.findtext(f"{SVG}title")).split(" s: ")
        # Dots of one moment may stand above and below the line of their row.
        row = round(float(circle.get("cy", "")) / 78)
        rows.setdefault(str(row), []).append((float(at), int(status)))
    direct, paced, held = rows.values()
    assert [status for _, status in direct].count(202) == 1
    assert [status for _, status in paced] == [202] * 12
    assert sorted(status for _, status in held) == [202] * 12 + [429]
    for dots in (paced, held):
        assert all(later[0] - earlier[0] >= 0.48 for earlier, later in pairwise(dots))


def test_the_load_test_has_the_properties_it_names() -> None:
    text = (ROOT / "config" / "jmeter" / "exports.jmx").read_text(encoding="utf-8")
    ET.fromstring(text)  # noqa: S314 -- likewise
    named = re.search(r"Properties: (.*?)\.\n", text, re.DOTALL)
    assert named is not None
    used = re.findall(r"__P\((\w+)", text) + re.findall(r"getOrDefault\('(\w+)'", text)
    assert set(re.findall(r"\w+(?=,|$| \()", named[1])) == set(used)


def test_each_function_for_which_changes_stay_unnoticed_is_there() -> None:
    """tests/mutation.md names them as `make mutation` does: `rules/refresh: Schedule.end`."""
    for function in sorted(explained(MUTATION_PAGE.read_text(encoding="utf-8"))):
        path, _, name = function.partition(": ")
        found: Any = import_module(f"proxy.{path.replace('/', '.')}")
        for part in name.split("."):
            found = vars(found)[part]
