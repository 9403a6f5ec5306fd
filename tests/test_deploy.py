"""What is deployed is valid and agrees with the program: manifests, unit, image, compose file."""

import importlib
import json
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from bench import cluster
from proxy.settings import Settings, load
from tests.conftest import program
from tests.kit.listener import HOST
from tests.kit.upstream import RawUpstream, RecordedRequest, Reply

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "config" / "deploy"
CLUSTER = ROOT / "config" / "cluster"
UNIT = DEPLOY / "export-proxy.service"


@pytest.fixture(scope="module")
def manifests() -> dict[str, Any]:
    """The manifests by kind."""
    text = (DEPLOY / "kubernetes.yaml").read_text(encoding="utf-8")
    return {manifest["kind"]: manifest for manifest in yaml.safe_load_all(text)}


@pytest.fixture(scope="module")
def pod(manifests: dict[str, Any]) -> Any:
    return manifests["Deployment"]["spec"]["template"]["spec"]


@pytest.fixture(scope="module")
def container(pod: Any) -> Any:
    (only,) = pod["containers"]
    return only


@pytest.fixture
def settings(manifests: dict[str, Any], container: Any, tmp_path: Path) -> Settings:
    """What the program makes of the ConfigMap, with the container's environment."""
    path = tmp_path / "proxy.yaml"
    path.write_text(manifests["ConfigMap"]["data"]["proxy.yaml"], encoding="utf-8")
    names = [variable["name"] for variable in container["env"]]
    return load(path, dict.fromkeys(names, "rediss://:password@store:6379/0"))


# Kubernetes


@pytest.mark.needs("kubernetes_validate")
def test_each_manifest_conforms_to_the_schema_of_kubernetes(manifests: dict[str, Any]) -> None:
    kubernetes_validate = importlib.import_module("kubernetes_validate")
    version = kubernetes_validate.latest_version()
    for manifest in manifests.values():
        kubernetes_validate.validate(manifest, version, strict=True)


def test_the_pod_may_do_next_to_nothing(pod: Any, container: Any) -> None:
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def test_probes_ask_the_admin_port(container: Any, settings: Settings) -> None:
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"https": settings.listen.port, "admin": settings.admin.port}
    probes = {
        kind: container[kind]["httpGet"]["path"] for kind in ("readinessProbe", "livenessProbe")
    }
    assert probes == {"readinessProbe": "/readyz", "livenessProbe": "/healthz"}
    assert settings.admin.host == "0.0.0.0"


def test_a_drain_has_its_time(pod: Any, container: Any, settings: Settings) -> None:
    """Unready long enough to be noticed, and not killed before the end."""
    probe = container["readinessProbe"]
    assert settings.limits.drain_delay > probe["periodSeconds"] * probe["failureThreshold"]
    assert pod["terminationGracePeriodSeconds"] > settings.limits.drain_timeout


def test_never_do_more_replicas_run_than_the_pace_counts_on(
    manifests: dict[str, Any], settings: Settings
) -> None:
    spec = manifests["Deployment"]["spec"]
    assert spec["replicas"] == settings.store.replicas
    assert spec["strategy"]["rollingUpdate"]["maxSurge"] == 0
    assert settings.store.url.get_secret_value().startswith("rediss://")


def test_every_secret_is_a_file_that_is_mounted(
    pod: Any, container: Any, settings: Settings
) -> None:
    secrets = {v["name"] for v in pod["volumes"] if "secret" in v}
    places = [Path(m["mountPath"]) for m in container["volumeMounts"] if m["name"] in secrets]
    assert settings.listen.tls is not None
    files = [settings.listen.tls.key_file, settings.listen.tls.cert_file]
    files += [a.client_secret_file for a in settings.accounts if a.client_secret_file]
    assert settings.admin.token_file is not None
    files.append(settings.admin.token_file)
    assert len(files) == 4
    assert all(file.parent in places for file in files)
    assert all(mount["readOnly"] for mount in container["volumeMounts"])


def test_memory_holds_all_bodies_that_may_wait(container: Any, settings: Settings) -> None:
    limit = re.fullmatch(r"(\d+)Mi", container["resources"]["limits"]["memory"])
    assert limit is not None
    assert int(limit[1]) * 2**20 > settings.limits.max_buffered + 128 * 2**20


def test_prometheus_scrapes_each_pod_under_the_name_that_the_alerts_expect(
    manifests: dict[str, Any], container: Any
) -> None:
    monitor = yaml.safe_load((DEPLOY / "podmonitor.yaml").read_text(encoding="utf-8"))
    labels = manifests["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert monitor["spec"]["selector"]["matchLabels"] == labels
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    assert endpoint["port"] in {port["name"] for port in container["ports"]}
    job = labels[monitor["spec"]["jobLabel"]]
    alerts = (DEPLOY.parent / "alerts.yml").read_text(encoding="utf-8")
    assert set(re.findall(r'job="([^"]+)"', alerts)) == {job}


# systemd


@pytest.mark.needs("systemd-analyze")
def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path: Path) -> None:
    installed = "/opt/export-proxy/bin/export-proxy"
    text = UNIT.read_text(encoding="utf-8")
    assert text.count(f"ExecStart={installed} ") == 1
    copy = tmp_path / UNIT.name
    copy.write_text(text.replace(f"ExecStart={installed}", f"ExecStart={sys.executable}"))
    command = [str(program("systemd-analyze")), "verify", "--man=no", str(copy)]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)  # noqa: S603 -- a fixed command
    about_ours = [line for line in done.stderr.splitlines() if UNIT.name in line]
    assert (done.returncode, about_ours) == (0, [])


def test_the_unit_gives_a_drain_its_time_and_the_program_its_descriptors() -> None:
    settings = load(DEPLOY.parent / "proxy.yaml", {})
    values = dict(re.findall(r"^(\w+)=(.*)$", UNIT.read_text(encoding="utf-8"), re.MULTILINE))
    assert int(values["TimeoutStopSec"]) > settings.limits.drain_timeout
    connections = settings.limits.max_connections + settings.upstream.max_connections
    assert int(values["LimitNOFILE"]) > connections + 64


def test_the_unit_starts_again_unless_the_configuration_is_bad() -> None:
    values = dict(re.findall(r"^(\w+)=(.*)$", UNIT.read_text(encoding="utf-8"), re.MULTILINE))
    assert values["Restart"] == "on-failure"
    assert values["RestartPreventExitStatus"].split() == ["2"]


# The Dockerfile


@pytest.mark.needs("hadolint")
def test_hadolint_finds_nothing_wrong_with_the_dockerfile() -> None:
    command = [str(program("hadolint")), "--no-color", "Dockerfile"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", check=False)  # noqa: S603 -- a fixed command
    assert (done.returncode, done.stdout) == (0, "")


def test_the_image_runs_as_the_user_and_the_command_the_pod_gives_it(
    pod: Any, container: Any
) -> None:
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    user = pod["securityContext"]
    assert f"\nUSER {user['runAsUser']}:{user['runAsGroup']}\n" in dockerfile
    assert f"\nCMD {json.dumps(container['args'])}\n" in dockerfile


# The compose file, and what is in config/cluster/


@pytest.fixture(scope="module")
def services() -> Any:
    return yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))["services"]


@pytest.fixture(scope="module")
def replica() -> Settings:
    return load(CLUSTER / "proxy.yaml", {})


def test_one_service_builds_the_image_and_nobody_looks_for_it_elsewhere(services: Any) -> None:
    ours = {name: one for name, one in services.items() if one["image"] == "export-proxy"}
    assert len(ours) == 3
    assert [name for name, one in ours.items() if "build" in one] == ["proxy-1"]
    assert {one["pull_policy"] for one in ours.values() if "build" not in one} == {"never"}


def test_the_secret_of_the_compose_file_is_made_as_both_pages_say() -> None:
    text = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    (secret,) = yaml.safe_load(text)["secrets"].values()
    made = re.findall(r"^#   (mkdir .*)$", text, re.MULTILINE)
    assert len(made) == 1
    assert f"> {secret['file']} && chmod 644 {secret['file']}" in made[0]
    page = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    assert f"\n{made[0]}\n" in page


def test_all_callers_may_come_from_the_address_of_the_load_balancer(replica: Settings) -> None:
    assert replica.limits.max_connections_per_peer == replica.limits.max_connections


def test_no_request_meets_a_connection_that_a_replica_is_closing(replica: Settings) -> None:
    """A connection of the balancer is idle for less time than a replica keeps it."""
    text = (CLUSTER / "haproxy.cfg").read_text(encoding="utf-8")
    seconds = {name: int(s) for name, s in re.findall(r"timeout (\S+) (\d+)s", text)}
    assert seconds["http-keep-alive"] + seconds["http-request"] < replica.limits.header_timeout
    assert "http-reuse never" in text


def longest(settings: Settings) -> float:
    """How long a caller may see no byte: the wait, the tries, and the API's own time."""
    upstream = settings.upstream.response_timeout
    return settings.pacing.max_wait + settings.retry.max_elapsed + upstream


def test_no_balancer_gives_up_before_the_proxy_does(replica: Settings) -> None:
    """Neither the one that is shipped nor those of the page."""
    text = (CLUSTER / "haproxy.cfg").read_text(encoding="utf-8")
    seconds = {name: int(s) for name, s in re.findall(r"timeout (\S+) (\d+)s", text)}
    assert min(seconds["server"], seconds["client"]) > longest(replica)
    page = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
    defaults = load(DEPLOY.parent / "proxy.yaml", {})
    assert f", {longest(defaults):.0f} s with the\n" in page
    for pattern in (
        r"proxy_read_timeout (\d+)s",
        r"`timeout \w+ (\d+)s`",
        r"timeout_seconds=(\d+)",
        r"idle_timeout\.seconds=(\d+)",
    ):
        found = [int(one) for one in re.findall(pattern, page)]
        relevant = [one for one in found if one > 100]  # not those of idle connections
        assert relevant, pattern
        assert min(relevant) > longest(defaults), pattern


def test_nginx_closes_idle_connections_before_the_proxy_does() -> None:
    page = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```nginx\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    defaults = load(DEPLOY.parent / "proxy.yaml", {})
    (idle,) = re.findall(r"keepalive_timeout (\d+)s;", block)
    assert int(idle) < defaults.limits.header_timeout
    assert "proxy_next_upstream off;" in block
    (body,) = re.findall(r"client_max_body_size (\d+)m;", block)
    assert int(body) * 2**20 > defaults.limits.max_body


@pytest.mark.needs("nginx")
def test_nginx_takes_the_block_of_the_page(tmp_path: Path) -> None:
    """Inside `http`, as the page says; with a port that needs no root."""
    page = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```nginx\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert block.count("listen 80;") == 1
    block = block.replace("listen 80;", f"listen {HOST}:8000;")
    names = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    folders = "".join(f"{name}_temp_path {tmp_path}/{name};\n" for name in names)
    file = tmp_path / "nginx.conf"
    file.write_text(
        f"pid {tmp_path}/pid;\nerror_log stderr;\nevents {{}}\n"
        f"http {{\naccess_log off;\n{folders}{block}}}\n",
        encoding="utf-8",
    )
    command = [
        str(program("nginx")),
        "-t",
        "-q",
        "-e",
        "stderr",
        "-p",
        str(tmp_path),
        "-c",
        str(file),
    ]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)  # noqa: S603 -- a fixed command
    assert (done.returncode, done.stderr) == (0, "")


def test_the_cluster_is_not_started_where_something_answers_already() -> None:
    """Its check would judge the answers of a stranger."""
    with socket.create_server((HOST, 0)) as other:
        command = [sys.executable, "-m", "bench.cluster", "--check", "--port"]
        port = str(other.getsockname()[1])
        done = subprocess.run([*command, port], cwd=ROOT, capture_output=True, check=False)  # noqa: S603 -- a fixed command
    assert (done.returncode, done.stdout.decode()) == (1, f"port {port} is taken\n")


@pytest.mark.parametrize(
    ("counted", "balancer", "code"),
    [(1, "runs", 0), (0, "runs", 1), (1, "ended", 1)],
    ids=["ours", "another answers", "the balancer is dead"],
)
async def test_the_check_of_the_cluster_looks_who_answers(
    counted: int, balancer: str, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Good answers do not do: our replicas must have given them, and all programs must run."""

    def answer(request: RecordedRequest) -> Reply:
        if request.target == b"/oauth/token":
            return Reply(200, (), b'{"access_token": "t"}')
        return Reply(202)

    metrics = f'export_proxy_requests_total{{code="202"}} {counted}\n'.encode()
    monkeypatch.setattr(cluster, "EXPORTS", 1)
    monkeypatch.setattr(cluster, "INTERVAL", 60.0)  # one export is always at the pace
    made = cluster.Cluster()
    async with (
        RawUpstream(answer) as port,
        RawUpstream(default=Reply(200, (), metrics)) as admin,
    ):
        try:
            await made.start(
                "haproxy",
                [
                    sys.executable,
                    "-c",
                    "" if balancer == "ended" else "import signal; signal.pause()",
                ],
            )
            if balancer == "ended":
                await made.children["haproxy"].wait()
            assert await cluster.check(made, [port.port], [admin.port]) == code
        finally:
            await made.stop()
