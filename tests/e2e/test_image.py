"""The image, without a container: the lines of the Dockerfile, carried out in an empty folder.

Its paths are moved below that folder, `python` is the one that runs the tests, and nothing but what
COPY brings is there. USER, and what the base image holds, are not tried.
"""

import asyncio
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.conftest import needs
from tests.kit.client import exchange, parse_response
from tests.kit.listener import HOST
from tests.kit.process import unmeasured, until
from tests.kit.upstream import free_port

ROOT = Path(__file__).parent.parent.parent
MADE = re.compile(r"(?<![\w./-])/(?=(?:opt|build)\b)")  # folders that the file itself makes
RUN_WITHIN = 280  # seconds for one line; pip may have to fetch everything
NO_PROXY = f"http://{HOST}:9"  # the discard port: nobody answers


@dataclass(slots=True)
class Stage:
    """What one FROM begins: a folder that is its root, and how a program starts in it."""

    root: Path
    folder: str = "/"
    environ: dict[str, str] = field(default_factory=dict)
    said: dict[str, list[str]] = field(default_factory=dict)

    def moved(self, text: str) -> str:
        """The text with the paths of the image below our root."""
        return MADE.sub(f"{self.root}/", text)

    def path(self, text: str) -> Path:
        """The place of a path of the image, which may be relative to its WORKDIR."""
        return self.root / os.path.join(self.folder, text).lstrip("/")  # noqa: PTH118 -- not ours

    def files(self) -> dict[str, tuple[int, int]]:
        """Each file, with its size and the time of its last change."""
        found = ((path, path.lstat()) for path in self.root.rglob("*"))
        return {str(path): (stat.st_size, stat.st_mtime_ns) for path, stat in found}


def instructions() -> Iterator[tuple[str, str]]:
    """The Dockerfile's instructions, without comments, each on one line."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    text = re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ")
    for line in filter(None, map(str.strip, text.splitlines())):
        name, _, rest = line.partition(" ")
        yield name, rest


def build(folder: Path, programs: Path) -> Stage:
    """Carry the Dockerfile out; the last stage."""
    stages: dict[str, Stage] = {}
    stage = Stage(folder)
    for name, rest in instructions():
        if name == "FROM":
            title = rest.partition(" AS ")[2] or "last"
            stage = stages[title] = Stage(folder / title)
            stage.root.mkdir()
        elif name == "COPY":
            *options, source, target = shlex.split(rest)
            origin = [stages[option.removeprefix("--from=")] for option in options]
            copy(origin[0].path(source) if origin else context(source), stage.path(target))
        elif name == "RUN":
            run(stage, rest, programs)
        else:
            obey(stage, name, rest)
    for other in stages.values():
        if other is not stage:
            shutil.rmtree(other.root)  # an image holds its last stage alone
    return stage


def obey(stage: Stage, name: str, rest: str) -> None:
    """Take note of what is said of the stage."""
    match name:
        case "WORKDIR":
            stage.folder = rest
            stage.path(".").mkdir(parents=True, exist_ok=True)
        case "ENV":
            pairs = (pair.partition("=") for pair in shlex.split(rest))
            stage.environ |= {key: stage.moved(value) for key, _, value in pairs}
        case "ENTRYPOINT" | "CMD":
            stage.said[name] = json.loads(stage.moved(rest))
        case "HEALTHCHECK":
            stage.said[name] = json.loads(rest[rest.index("CMD") + 3 :])
        case "USER" | "EXPOSE" | "STOPSIGNAL":
            pass
        case _:
            pytest.fail(f"what does {name} do here?")


def context(source: str) -> Path:
    """A file or folder of the repository, if .dockerignore lets it through."""
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert "*" in lines
    assert any(f"!/{part}" in lines for part in (source, *map(str, Path(source).parents)))
    return ROOT / source


def copy(source: Path, target: Path) -> None:
    if source.is_dir():
        ignored = shutil.ignore_patterns("__pycache__") if source.is_relative_to(ROOT) else None
        shutil.copytree(source, target, symlinks=True, ignore=ignored, dirs_exist_ok=True)
    else:
        shutil.copy(source, target / source.name if target.is_dir() else target)


def run(stage: Stage, command: str, programs: Path) -> None:
    environ = {name: text for name, text in unmeasured().items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        ["/bin/sh", "-c", stage.moved(command)],
        cwd=stage.path("."),
        env={**environ, **stage.environ, "PATH": f"{programs}:/usr/bin:/bin"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        timeout=RUN_WITHIN,
        check=False,
    )
    if "No matching distribution found" in done.stdout:
        needs("a package index that has what the lock pins")
    assert done.returncode == 0, done.stdout


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("image")
    programs = folder / "programs"
    programs.mkdir()
    python = programs / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n', encoding="utf-8")
    python.chmod(0o755)
    yield build(folder, programs)
    shutil.rmtree(folder)


def test_it_holds_the_program_and_its_libraries_compiled(image: Stage) -> None:
    names = [Path(name).relative_to(image.root).as_posix() for name in image.files()]
    folder = "opt/export-proxy/"
    assert f"{folder}LICENSE" in names
    assert f"{folder}app/proxy/store/lease.lua" in names
    compiled = [name for name in names if name.endswith(".pyc")]
    assert any(name.startswith(f"{folder}app/proxy/cli/__pycache__/commands.") for name in compiled)
    assert any("/site-packages/aiohttp/__pycache__/web." in name for name in compiled)
    assert not any("/site-packages/pytest/" in name for name in names)


async def test_it_serves_is_healthy_drains_and_writes_nothing(image: Stage, tmp_path: Path) -> None:
    """From another folder and with no other environment; its health asks no forward proxy."""
    before = image.files()
    admin = free_port()
    environ = {
        **image.environ,
        "EXPORT_PROXY__LISTEN__PORT": "0",
        "EXPORT_PROXY__ADMIN__PORT": str(admin),
    }
    arguments = image.said["CMD"]
    assert arguments[:-1] == ["serve", "--config"]
    config = str(ROOT / "config" / "demo.yaml")
    serve = await asyncio.create_subprocess_exec(
        *(*image.said["ENTRYPOINT"], *arguments[:-1], config),
        cwd=tmp_path,
        env=environ,
        stderr=asyncio.subprocess.DEVNULL,
    )

    async def is_ready() -> bool:
        assert serve.returncode is None
        try:
            answer = await exchange(HOST, admin, b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        except ConnectionRefusedError:
            return False
        return parse_response(answer).status == 200

    try:
        await until(is_ready, within=30)
        check = [part.replace(":9180", f":{admin}") for part in image.said["HEALTHCHECK"]]
        assert check != image.said["HEALTHCHECK"]
        health = await asyncio.create_subprocess_exec(
            *check,
            cwd=image.path("."),
            env={**image.environ, "http_proxy": NO_PROXY},
            stdout=asyncio.subprocess.DEVNULL,
        )
        assert await health.wait() == 0
        serve.send_signal(signal.SIGTERM)
        assert await serve.wait() == 0
    finally:
        if serve.returncode is None:
            serve.kill()
            await serve.wait()
    assert image.files() == before
    assert Stage(tmp_path).files() == {}
