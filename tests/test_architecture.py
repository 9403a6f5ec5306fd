"""No module uses a name of aiohttp that it does not export."""

import ast
import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import aiohttp
import aiohttp.http
import aiohttp.typedefs
import aiohttp.web

ROOT = Path(__file__).parent.parent
PUBLIC = (aiohttp, aiohttp.http, aiohttp.web, aiohttp.typedefs)
PUBLIC_NAMES = {module.__name__ for module in PUBLIC} - {"aiohttp"}


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


@cache
def classes_in(module: str) -> dict[str, str]:
    """The source of each class of a module; `inspect.getsource` parses it anew for each."""
    try:
        text = inspect.getsource(importlib.import_module(module))
    except (OSError, TypeError):  # compiled
        return {}
    lines = text.splitlines()
    return {
        node.name: "\n".join(lines[node.lineno - 1 : node.end_lineno])
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.ClassDef)
    }


def attributes_of(one: type) -> frozenset[str]:
    """The private attributes and methods that a class of aiohttp has itself."""
    names = {name for name in vars(one) if is_private(name)}
    source = classes_in(one.__module__).get(one.__name__, "")
    return frozenset({*names, *re.findall(r"\bself\.(_[a-z]\w*)", source)})


@cache
def all_attributes() -> frozenset[str]:
    modules = [
        importlib.import_module(found.name)
        for found in pkgutil.iter_modules(aiohttp.__path__, "aiohttp.")
        if not found.name.endswith(("pytest_plugin", "worker"))  # they need more than aiohttp
    ]
    members = [one for module in modules for _, one in inspect.getmembers(module, inspect.isclass)]
    classes = {one for one in members if one.__module__.startswith("aiohttp.")}
    return frozenset().union(*(attributes_of(one) for one in classes))


def private_imports(tree: ast.AST) -> Iterator[str]:
    """Names that aiohttp does not export: with an underscore, or in none of its public modules."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "aiohttp":
            for name in (alias.name for alias in node.names):
                exported = any(name in getattr(module, "__all__", ()) for module in PUBLIC)
                submodule = node.module == "aiohttp" and hasattr(aiohttp, name)
                if is_private(name) or not (exported or submodule or node.module in PUBLIC_NAMES):
                    yield name


def private_attributes(tree: ast.AST, module: str) -> Iterator[str]:
    """Attributes of others by names that aiohttp has, and what a subclass of its classes uses."""
    text = ast.unparse(tree)
    for node in ast.walk(tree):
        match node:
            case ast.ClassDef(name=name):
                yield from inherited(node, getattr(importlib.import_module(module), name, None))
            case ast.Attribute(value=ast.Name(id="self" | "cls")):
                pass
            case ast.Attribute(attr=name) if is_private(name) and name in all_attributes():
                if not re.search(rf"\b(?:self\.{name}\b.* = |def {name}\b)", text):
                    yield name


def inherited(tree: ast.ClassDef, one: object) -> Iterator[str]:
    bases = one.__mro__ if isinstance(one, type) else ()
    theirs = [attributes_of(base) for base in bases if base.__module__.startswith("aiohttp.")]
    for node in ast.walk(tree):
        match node:
            case (
                ast.Attribute(attr=name)
                | ast.FunctionDef(name=name)
                | ast.AsyncFunctionDef(name=name)
            ) if any(name in names for names in theirs):
                yield name


@cache
def uses() -> dict[str, set[str]]:
    """The private names of aiohttp that each module uses."""
    found = {}
    for path in sorted((ROOT / "proxy").rglob("*.py")):
        place = path.relative_to(ROOT / "proxy")
        text = path.read_text(encoding="utf-8")
        if "aiohttp" not in text:
            continue
        tree = ast.parse(text)
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        names = {*private_imports(tree), *private_attributes(tree, module)}
        if names:
            found[place.as_posix()] = names
    return found


def test_no_private_name_of_aiohttp_is_used() -> None:
    assert uses() == {}


def test_a_private_name_is_noticed_however_it_is_used() -> None:
    """Imported, exported by no public module, read from another's object, or overridden."""
    source = """
from aiohttp.connector import Connection
from aiohttp.helpers import _EXC_SENTINEL
from aiohttp import ClientSession
from aiohttp.http import HttpRequestParser
session._connector
self._connector
class Response(web.Response):
    def _start(self): ...
"""
    tree = ast.parse(source)
    assert set(private_imports(tree)) == {"Connection", "_EXC_SENTINEL"}
    assert set(private_attributes(tree, "aiohttp.web_response")) == {"_connector", "_start"}
