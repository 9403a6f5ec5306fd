"""A configuration is read whole and frozen, or refused with a line for each problem."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel, SecretStr, ValidationError

from proxy.settings import (
    DEFAULT_ROUTES,
    CallerKey,
    ConfigError,
    Pacing,
    Settings,
    Tls,
    Upstream,
    load,
)

CONFIG = Path(__file__).parents[2] / "config"
UPSTREAM = "upstream: {api_url: 'https://api.example', login_url: 'https://login.example'}\n"
SECRET = "hunter2-do-not-show"
UUID = "abcdef00-1234-4321-8888-0123456789ab"
KEY = "sha256:" + "ab" * 32

Load = Callable[..., Settings]


@pytest.fixture
def read(tmp_path: Path) -> Load:
    """Load this YAML, after a minimal `upstream`, in this environment."""

    def read(text: str = "", *, above: str = UPSTREAM, **environ: str) -> Settings:
        path = tmp_path / "proxy.yaml"
        path.write_text(above + text, encoding="utf-8")
        return load(path, environ)

    return read


@pytest.fixture
def problems(read: Load) -> Callable[..., tuple[str, ...]]:
    def problems(text: str = "", *, above: str = UPSTREAM, **environ: str) -> tuple[str, ...]:
        with pytest.raises(ConfigError) as refused:
            read(text, above=above, **environ)
        return refused.value.problems

    return problems


Problems = Callable[..., tuple[str, ...]]


def test_the_shipped_file_holds_the_defaults_of_the_model() -> None:
    assert load(CONFIG / "proxy.yaml", {}) == Settings(
        upstream=Upstream(
            api_url="https://api.euw2.pure.cloud", login_url="https://login.euw2.pure.cloud"
        )
    )


def test_the_shipped_file_names_every_key() -> None:
    shipped = yaml.safe_load((CONFIG / "proxy.yaml").read_text(encoding="utf-8"))
    model = load(CONFIG / "proxy.yaml", {}).model_dump()
    keys = {section: set(value) for section, value in model.items() if isinstance(value, dict)}
    assert {name: set(value) for name, value in shipped.items() if name in keys} == keys
    assert shipped.keys() == model.keys()
    assert shipped["routes"][2].keys() | {"deny"} == model["routes"][2].keys()


def test_the_demo_needs_nothing_but_the_simulator() -> None:
    demo = load(CONFIG / "demo.yaml", {})
    assert demo == Settings(
        upstream=Upstream(api_url="http://127.0.0.1:8081", login_url="http://127.0.0.1:8081")
    )


def test_a_full_file_is_read_as_written(read: Load) -> None:
    settings = read(
        f"""
listen: {{port: 0, api_prefix: /gc, login_prefix: /gc/login, tls: {{cert_file: c, key_file: k}}}}
admin: {{allowed_hosts: [Ops.example], port: 0}}
identity: {{issuer: "urn:x", jwks_url: "https://keys.example/a?b", audience: exports}}
accounts:
  - {{name: london, client_id: id-1, client_secret_file: /run/s, keys: ["sha256:{"AB" * 32}"]}}
  - {{name: paris, client_id: id-2, interval: 2}}
routes:
  - name: all
    paths: [/a/*/b, /**]
    require_scopes: {{POST: ["a:b"], GET: []}}
    channels: [{{fields: [channel], values: [sms], cost: 2.5}}]
store: {{url: "redis+sentinel://:pw@h1:26379,h2:26379/main/0"}}
"""
    )
    assert settings.listen.tls == Tls(cert_file=Path("c"), key_file=Path("k"))
    assert settings.admin.allowed_hosts == ("ops.example",)
    london, paris = settings.accounts
    assert (london.is_managed, london.interval) == (True, None)
    assert london.keys == (CallerKey(sha256=KEY),)
    assert (paris.is_managed, paris.keys, paris.interval) == (False, (), 2.0)
    (route,) = settings.routes
    assert route.methods == ("*",)
    assert route.require_scopes == {"POST": ("a:b",), "GET": ()}
    assert route.channels[0].cost == 2.5
    assert settings.store.url.get_secret_value() == "redis+sentinel://:pw@h1:26379,h2:26379/main/0"


def test_a_key_may_have_a_name_and_a_weight(read: Load) -> None:
    settings = read(
        f"""
accounts:
  - name: london
    client_id: id-1
    client_secret_file: /run/s
    keys: [{{name: batch, sha256: "{"AB" * 32}", weight: 3}}]
"""
    )
    (key,) = settings.accounts[0].keys
    assert (key.name, key.weight, key.sha256) == ("batch", 3, KEY)


def test_an_origin_is_normalised(read: Load) -> None:
    above = "upstream: {api_url: 'HTTPS://API.example:8443/', login_url: 'http://[::1]:1'}"
    upstream = read(above=above).upstream
    assert (upstream.api_url, upstream.login_url) == ("https://api.example:8443", "http://[::1]:1")


def test_settings_are_frozen(read: Load) -> None:
    settings = read()
    with pytest.raises(ValidationError):
        settings.pacing.interval = 0.1  # type: ignore[misc]  # that it cannot be set is the claim


ACCOUNT = "accounts: [{{name: a, client_id: b, {}}}]"
ROUTE = "routes: [{{name: a, paths: [/a], {}}}]"
ORIGIN = "must be http(s)://host[:port], without path, query or user"
STORE_URL = (
    "must be memory://, redis://host:port/db, rediss://host:port/db"
    " or redis+sentinel://host:port,host:port/service/db"
)
PATTERN = "'*' stands for a whole segment, and '**' only at the end"
PREFIX = "must be empty, or start with a slash and not end with one, like /gc"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        # shape and types
        ("speed: {}", "speed: is not a known key"),
        ("pacing: {tempo: 1}", "pacing.tempo: is not a known key"),
        ("pacing: {1: 2}", "pacing[1]: is not a known key"),
        ("pacing: 5", "pacing: must be a mapping"),
        ("pacing:", "pacing: must be a mapping"),
        ("accounts: {}", "accounts: must be a list"),
        ("accounts: [a]", "accounts[0]: must be a mapping"),
        ("accounts: [{client_id: a}]", "accounts[0].name: is required"),
        ("accounts: [{name: a}]", "accounts[0].client_id: is required"),
        ("accounts: [{name: a, client_id: 5}]",
         "accounts[0].client_id: must be text, in quotes if need be"),
        ("routes: []", "routes: must not be empty"),
        ("listen: {tls: {cert_file: a}}", "listen.tls.key_file: is required"),
        ("listen: {tls: {cert_file: a, key_file: ''}}", "listen.tls.key_file: must be a file name"),
        ("admin: {token_file: 5}", "admin.token_file: must be a file name"),
        (r'admin: {token_file: "a\0b"}', "admin.token_file: must be a file name"),
        (r'admin: {token_file: "a\ud800b"}', "admin.token_file: must be a file name"),
        # numbers
        ("pacing: {interval: true}", "pacing.interval: must be a number"),
        ("pacing: {interval: '0.5'}", "pacing.interval: must be a number"),
        ("pacing: {interval: null}", "pacing.interval: must be a number"),
        ("pacing: {interval: 0}", "pacing.interval: must be greater than 0"),
        ("pacing: {interval: -1}", "pacing.interval: must be greater than 0"),
        ("pacing: {interval: .nan}", "pacing.interval: must be a finite number"),
        ("pacing: {interval: .inf}", "pacing.interval: must be a finite number"),
        ("pacing: {max_wait: -0.1}", "pacing.max_wait: must be greater than or equal to 0"),
        ("pacing: {max_queue: 0}", "pacing.max_queue: must be greater than or equal to 1"),
        ("pacing: {max_queue: 1.5}", "pacing.max_queue: must be a whole number"),
        ("pacing: {max_queue: []}", "pacing.max_queue: must be a whole number"),
        ("listen: {port: 65536}", "listen.port: must be less than or equal to 65535"),
        ("listen: {port: -1}", "listen.port: must be greater than or equal to 0"),
        ("retry: {budget: 1.5}", "retry.budget: must be less than or equal to 1"),
        ("store: {replicas: 0}", "store.replicas: must be greater than or equal to 1"),
        # text
        ("log: {level: loud}", "log.level: must be 'debug', 'info', 'warning' or 'error'"),
        ("listen: {host: ''}", "listen.host: must be an address or a host name"),
        ("listen: {api_prefix: gc}", f"listen.api_prefix: {PREFIX}"),
        ("listen: {api_prefix: /gc/}", f"listen.api_prefix: {PREFIX}"),
        ("listen: {api_prefix: /}", f"listen.api_prefix: {PREFIX}"),
        ("listen: {login_prefix: /a/../b}", f"listen.login_prefix: {PREFIX}"),
        ("admin: {allowed_hosts: ['a:80']}",
         "admin.allowed_hosts[0]: must be a host name, without a port"),
        ("store: {url: 'mysql://a'}", f"store.url: {STORE_URL}"),
        ("store: {url: 'MEMORY://'}", f"store.url: {STORE_URL}"),
        ("store: {url: 'redis://'}", f"store.url: {STORE_URL}"),
        ("store: {url: 'redis://host:port'}", f"store.url: {STORE_URL}"),
        ("store: {url: 'redis+sentinel://h1:26379'}", f"store.url: {STORE_URL}"),
        ("store: {url: 'redis://host:65536/0'}", f"store.url: {STORE_URL}"),
        ("store: {url: 'redis+sentinel://h1:1,h2:65536/main'}", f"store.url: {STORE_URL}"),
        ("store: {url: 'redis://host:0/0'}", f"store.url: {STORE_URL}"),
        ("store: {url: 'redis://[10.0.0.1]:1/0'}", f"store.url: {STORE_URL}"),
        ("store: {url: 'redis+sentinel://h1:1,[:::1]:2/main'}", f"store.url: {STORE_URL}"),
        ("store: {url: 'rediss://host/0?ssl_cert_reqs=none'}", "store.url: must have no query"),
        ("store: {url: 'redis://:pw@host?db=x'}", "store.url: must have no query"),
        ("store: {url: 'redis+sentinel://h1:1/main/0?a=b'}", "store.url: must have no query"),
        ("identity: {issuer: a, audience: b, jwks_url: ftp://a}",
         "identity.jwks_url: must be an http(s) URL without user"),
        ("identity: {issuer: a, audience: b, jwks_url: 'https://[10.0.0.1]/keys'}",
         "identity.jwks_url: must be an http(s) URL without user"),
        ("identity: {issuer: a, audience: b, jwks_url: 'https://a:99999/keys'}",
         "identity.jwks_url: must be an http(s) URL without user"),
        ("identity: {claim: ''}", "identity.claim: must not be empty"),
        ("routes: [{name: a, paths: [a/b]}]",
         "routes[0].paths[0]: The target is neither a path nor an absolute http URL."),
        # accounts
        ("accounts: [{name: other, client_id: a}]",
         "accounts[0].name: must not be other, login or none, which have a meaning of their own"),
        ("accounts: [{name: a b, client_id: a}]",
         "accounts[0].name: must be 1 to 64 letters, digits, '.', '_' or '-'"),
        ("accounts: [{name: a, client_id: ''}]",
         "accounts[0].client_id: must be printable ASCII, and not empty"),
        (ACCOUNT.format("interval: 0"), "accounts[0].interval: must be greater than 0"),
        (ACCOUNT.format("client_secret: ''"), "accounts[0].client_secret: must not be empty"),
        (ACCOUNT.format("client_secret: c, client_secret_file: d"),
         "accounts[0].client_secret: must not be given together with client_secret_file"),
        (ACCOUNT.format("client_secret: c, keys: [sha256:abc]"),
         "accounts[0].keys[0]: must be sha256: and 64 hexadecimal digits"),
        (ACCOUNT.format(f"keys: ['{KEY}']"),
         "accounts[0].keys: need client_secret or client_secret_file"),
        ("accounts: [{name: a, client_id: b}, {name: a, client_id: c}]",
         "accounts[1].name: is the same as accounts[0].name"),
        ("accounts: [{name: a, client_id: b}, {name: c, client_id: b}]",
         "accounts[1].client_id: is the same as accounts[0].client_id"),
        (f"accounts: [{{name: a, client_id: {UUID}}}, {{name: b, client_id: {UUID.upper()}}}]",
         "accounts[1].client_id: is the same as accounts[0].client_id"),
        (ACCOUNT.format(f"client_secret: c, keys: ['{KEY}', '{KEY}']"),
         "accounts[0].keys[1]: is the same as accounts[0].keys[0]"),
        # routes
        ("routes: [{name: login, paths: [/a]}]",
         "routes[0].name: must not be other, login or none, which have a meaning of their own"),
        ("routes: [{name: a, paths: [/a]}, {name: a, paths: [/b]}]",
         "routes[1].name: is the same as routes[0].name"),
        ("routes: [{name: a, paths: []}]", "routes[0].paths: must not be empty"),
        ("routes: [{name: a, paths: [/a/b*]}]", f"routes[0].paths[0]: {PATTERN}"),
        ("routes: [{name: a, paths: [/a, /**/b]}]", f"routes[0].paths[1]: {PATTERN}"),
        (ROUTE.format("deny: true, paced: true"),
         "routes[0].paced: must not be true where deny is"),
        (ROUTE.format("interval: 1"), "routes[0].interval: needs paced: true"),
        (ROUTE.format("paced: true, interval: 0"), "routes[0].interval: must be greater than 0"),
        (ROUTE.format("paced: 1"), "routes[0].paced: must be true or false"),
        (ROUTE.format("methods: []"), "routes[0].methods: must not be empty"),
        (ROUTE.format("methods: [get]"),
         ("routes[0].methods[0]: must be"
          " '*', 'GET', 'HEAD', 'POST', 'PUT', 'PATCH', 'DELETE' or 'OPTIONS'")),
        (ROUTE.format("require_scopes: {'*': [a]}"),
         ("routes[0].require_scopes.*: must be"
          " 'GET', 'HEAD', 'POST', 'PUT', 'PATCH', 'DELETE' or 'OPTIONS'")),
        (ROUTE.format("methods: ['*', GET]"),
         "routes[0].methods: must be '*' alone or a list of methods"),
        (ROUTE.format("methods: [GET], require_scopes: {POST: [a]}"),
         "routes[0].require_scopes.POST: is not among the route's methods"),
        (ROUTE.format("require_scopes: {POST: a}"),
         "routes[0].require_scopes.POST: must be a list"),
        (ROUTE.format("require_scopes: {POST: ['a b']}"),
         "routes[0].require_scopes.POST[0]: must be one scope, without spaces or quotes"),
        (ROUTE.format("channels: [{fields: [a], values: []}]"),
         "routes[0].channels[0].values: must not be empty"),
        (ROUTE.format("channels: [{values: [a]}]"), "routes[0].channels[0].fields: is required"),
        (ROUTE.format("channels: [{fields: [a], values: [b], cost: 0.9}]"),
         "routes[0].channels[0].cost: must be greater than or equal to 1"),
        # what must agree
        ("retry: {initial_backoff: 31}", "retry.initial_backoff: must not be above max_backoff"),
        ("identity: {issuer: a, audience: b}",
         "identity.jwks_url: is required: issuer, jwks_url and audience go together"),
        ("limits: {max_buffered: 1}", "limits.max_buffered: must not be below max_body"),
        ("limits: {drain_delay: 23}",
         "limits.drain_timeout: must be more than 2 s above drain_delay"),
        ("admin: {port: 8080}", "admin.port: must not be the same as listen.port"),
        ("pacing: {max_wait: 15}\ntokens: {on_missing_scope: wait}",
         "tokens.on_missing_scope: wait needs a pacing.max_wait above tokens.min_refresh_interval"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_one_line_with_its_key(problems: Problems, text: str, line: str) -> None:
    assert problems(text) == (line,)


@pytest.mark.parametrize(
    "url",
    [
        "api.example",
        "ftp://api.example",
        "https://",
        "https://api.example/v2",
        "https://api.example?a=b",
        "https://user:pw@api.example",
        "https://api.example:0",
        "https://[::1",
        "https://[:::1]",
        "https://[127.0.0.1]:443",
        "https://api.example:65536",
    ],
)
def test_an_upstream_url_is_an_origin(problems: Problems, url: str) -> None:
    above = f"upstream: {{api_url: '{url}', login_url: 'https://a'}}"
    assert problems(above=above) == (f"upstream.api_url: {ORIGIN}",)


@pytest.mark.parametrize(
    "url",
    ["socks5://p:1080", "http://p:3128/path", "http://p:99999", "http://[10.0.0.1]:3128", "p"],
)
def test_a_forward_proxy_is_an_origin_that_may_have_a_user(problems: Problems, url: str) -> None:
    above = f"upstream: {{api_url: 'https://a', login_url: 'https://a', proxy_url: '{url}'}}"
    complaint = "must be http(s)://[user:password@]host[:port], without path or query"
    assert problems(above=above) == (f"upstream.proxy_url: {complaint}",)


def test_values_at_the_edge_are_fine(read: Load) -> None:
    read(
        """
listen: {port: 0}
admin: {port: 0}
pacing: {max_wait: 15.1}
retry: {initial_backoff: 30, budget: 0}
tokens: {on_missing_scope: wait, refresh_margin: 0}
limits: {drain_delay: 22.9, max_buffered: 512000}
"""
    )


def test_all_problems_are_told_at_once(problems: Problems) -> None:
    text = """
listen: {port: x}
pacing: {interval: 0, max_wait: "${GONE}"}
accounts: [{name: none}]
"""
    assert set(problems(text, above="", EXPORT_PROXY__LOGG__LEVEL="info")) == {
        "listen.port: must be a number",
        "pacing.interval: must be greater than 0",
        "pacing.max_wait: the environment variable GONE is not set",
        "accounts[0].name: must not be other, login or none, which have a meaning of their own",
        "accounts[0].client_id: is required",
        "upstream: is required",
        "EXPORT_PROXY__LOGG__LEVEL: overrides nothing; did you mean LOG__LEVEL?",
    }


def test_both_urls_are_required(problems: Problems) -> None:
    assert problems(above="upstream: {}") == (
        "upstream.api_url: is required",
        "upstream.login_url: is required",
    )


def test_a_key_given_twice_is_refused(problems: Problems) -> None:
    text = "pacing:\n  interval: 1\n  max_wait: 2\n  interval: 3\n"
    assert problems(text) == ("pacing.interval: is given twice, in lines 3 and 5",)


@pytest.mark.parametrize(
    ("word", "value"), [("off", "off"), ("Off", "off"), ('"off"', "off"), ("warn", "warn")]
)
def test_a_choice_is_taken_as_it_is_written(read: Load, word: str, value: str) -> None:
    settings = read(f"routes: [{{name: a, paths: [/a], on_nested: {word}}}]")
    assert settings.routes[0].on_nested == value


@pytest.mark.parametrize(
    ("word", "value"),
    [("yes", True), ("On", True), ("true", True), ("no", False), ("OFF", False), ("False", False)],
)
def test_yes_and_no_are_true_and_false_where_a_flag_is_meant(
    read: Load, word: str, *, value: bool
) -> None:
    settings = read(f"routes: [{{name: a, paths: [/a], paced: {word}}}]")
    assert settings.routes[0].paced is value


BASE_60 = (
    "looks like a time of day, which YAML 1.1 reads as a number in base 60:"
    " write seconds, or quote it"
)
OCTAL = "starts with 0, which YAML 1.1 reads as an octal number: leave the 0 out, or quote it"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            "pacing: {max_wait: 1:30}",
            f"pacing.max_wait: {BASE_60}",
        ),
        (
            "pacing: {interval: 1:30.5}",
            f"pacing.interval: {BASE_60}",
        ),
        (
            "listen: {port: 010}",
            f"listen.port: {OCTAL}",
        ),
    ],
)
def test_a_number_that_yaml_reads_as_another_is_refused(
    problems: Problems, text: str, line: str
) -> None:
    assert problems(text) == (line,)


@pytest.mark.parametrize("number", ["0", "0.5", "0x10", "-0", "1_000"])
def test_other_numbers_are_no_traps(problems: Problems, number: str) -> None:
    lines = problems(f"pacing: {{interval: -7, max_wait: {number}}}")
    assert all("YAML" not in line for line in lines)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("pacing: {interval_: 1}", "pacing.interval_: is not a known key; did you mean interval?"),
        ("paceing: {}", "paceing: is not a known key; did you mean pacing?"),
        (
            "routes: [{name: a, paths: [/a], onnested: off}]",
            "routes[0].onnested: is not a known key; did you mean on_nested?",
        ),
        (
            "listen: {tls: {cert_file: /c, key_file: /k, certfile: /c}}",
            "listen.tls.certfile: is not a known key; did you mean cert_file?",
        ),
        ("pacing: {zzzzzz: 1}", "pacing.zzzzzz: is not a known key"),
    ],
)
def test_an_unknown_key_is_told_its_nearest(problems: Problems, text: str, line: str) -> None:
    assert problems(text) == (line,)


def test_two_variables_for_one_key_are_refused(problems: Problems) -> None:
    (line,) = problems("", EXPORT_PROXY__LOG__LEVEL="info", export_proxy__log__level="debug")
    assert line == (
        "export_proxy__log__level: is the same key as EXPORT_PROXY__LOG__LEVEL, in another case:"
        " unset one"
    )


def test_an_unknown_variable_is_told_its_nearest(problems: Problems) -> None:
    assert problems("", EXPORT_PROXY__PACING__INTERVAL_="1") == (
        "EXPORT_PROXY__PACING__INTERVAL_: overrides nothing; did you mean PACING__INTERVAL?",
    )


NUMBERS = [
    f"{section}.{key}"
    for section, model in Settings.model_fields.items()
    if isinstance(model.annotation, type) and issubclass(model.annotation, BaseModel)
    for key, field in model.annotation.model_fields.items()
    if field.annotation in {int, float}
]


@pytest.mark.parametrize("path", NUMBERS)
def test_every_number_has_a_bound(problems: Problems, path: str) -> None:
    """Beyond it something breaks: a timer, a socket option, the parser."""
    section, _, key = path.partition(".")
    lines = problems(f"{section}: {{{key}: {10**15}}}", above="")
    assert any(line.startswith(f"{path}: must be less than or equal to") for line in lines)


def test_numbers_in_lists_have_bounds_too(problems: Problems) -> None:
    lines = problems(
        """
accounts: [{name: a, client_id: b, interval: 1000000000}]
routes: [{name: a, paths: [/a], channels: [{fields: [f], values: [v], cost: 1000000000}]}]
"""
    )
    assert lines == (
        "accounts[0].interval: must be less than or equal to 604800",
        "routes[0].channels[0].cost: must be less than or equal to 1000",
    )


def test_a_merge_key_may_be_overridden_and_an_alias_used_twice(read: Load) -> None:
    settings = read(
        """
accounts:
  - &london {name: london, client_id: id-1, interval: 2}
  - {<<: *london, name: paris, client_id: id-2}
"""
    )
    assert [(a.name, a.interval) for a in settings.accounts] == [("london", 2.0), ("paris", 2.0)]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "must hold a mapping of sections"),
        (b"# nothing\n", "must hold a mapping of sections"),
        (b"- a\n", "must hold a mapping of sections"),
        (b"\xff\xfe\xfa", "is not UTF-8 text"),
        (b"a: [", "is not valid YAML at line 1, column 5"),
        (b"a: !hunter2 b", "is not valid YAML at line 1, column 4"),
        (b"a: 2026-02-31", "is not valid YAML"),
        (b"a: @b",
         "is not valid YAML at line 1, column 4: found character '@' that cannot start any token"),
        (b"a: " + b"[" * 1000, "is nested too deeply"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_configuration(tmp_path: Path, content: bytes, complaint: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as refused:
        load(path, {})
    assert refused.value.problems == (f"{path}: {complaint}",)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as missing:
        load(tmp_path / "none.yaml", {})
    assert missing.value.problems == (
        f"{tmp_path}/none.yaml: cannot be read: No such file or directory",
    )
    with pytest.raises(ConfigError) as folder:
        load(tmp_path, {})
    assert folder.value.problems == (f"{tmp_path}: cannot be read: Is a directory",)


def test_a_file_that_contains_itself_ends(problems: Problems) -> None:
    assert problems("accounts: &a [*a]") == ("accounts[0]: must be a mapping",)


@pytest.mark.parametrize(
    ("name", "text", "path", "value"),
    [
        ("EXPORT_PROXY__PACING__INTERVAL", "0.25", "pacing.interval", 0.25),
        ("export_proxy__pacing__interval", "0.25", "pacing.interval", 0.25),
        ("EXPORT_PROXY__PACING__MAX_QUEUE", "7", "pacing.max_queue", 7),
        ("EXPORT_PROXY__PACING", '{"interval": 0.75}', "pacing.interval", 0.75),
        ("EXPORT_PROXY__LISTEN__API_PREFIX", "", "listen.api_prefix", ""),
        ("EXPORT_PROXY__LISTEN__TLS__KEY_FILE", "/k", "listen.tls.key_file", Path("/k")),
        ("EXPORT_PROXY__LISTEN__TLS", "null", "listen.tls", None),
        ("EXPORT_PROXY__ADMIN__TOKEN_FILE", "null", "admin.token_file", None),
        ("EXPORT_PROXY__ADMIN__ALLOWED_HOSTS", '["b", "c"]', "admin.allowed_hosts", ("b", "c")),
        ("EXPORT_PROXY__ROUTES", '[{"name": "x", "paths": ["/x"]}]', "routes.0.name", "x"),
    ],
)
def test_the_environment_beats_the_file(
    read: Load, name: str, text: str, path: str, value: object
) -> None:
    settings: Any = read(
        """
listen: {api_prefix: /gc, tls: {cert_file: /c, key_file: /old}}
admin: {token_file: /t, allowed_hosts: [a]}
pacing: {interval: 1, max_queue: 5, max_wait: 9}
""",
        **{name: text},
    )
    assert settings.pacing.max_wait == 9.0
    for step in path.split("."):
        settings = settings[int(step)] if step.isdigit() else getattr(settings, step)
    assert settings == value
    assert type(settings) is type(value) or isinstance(value, Path)


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        ("EXPORT_PROXY__PACING__RHYTHM", "1", "EXPORT_PROXY__PACING__RHYTHM: overrides nothing"),
        ("EXPORT_PROXY__SPEED__INTERVAL", "1", "EXPORT_PROXY__SPEED__INTERVAL: overrides nothing"),
        ("EXPORT_PROXY__", "1", "EXPORT_PROXY__: overrides nothing"),
        ("EXPORT_PROXY__ACCOUNTS__0__NAME", "a",
         "EXPORT_PROXY__ACCOUNTS__0__NAME: overrides nothing"),
        ("EXPORT_PROXY__PACING__INTERVAL", "fast",
         "pacing.interval: must be a number (it comes from EXPORT_PROXY__PACING__INTERVAL)"),
        ("EXPORT_PROXY__PACING__INTERVAL", "nan",
         "pacing.interval: must be a finite number (it comes from EXPORT_PROXY__PACING__INTERVAL)"),
        ("EXPORT_PROXY__PACING__INTERVAL", "",
         "pacing.interval: must be a number (it comes from EXPORT_PROXY__PACING__INTERVAL)"),
        ("EXPORT_PROXY__PACING", "5", "pacing: must be a mapping"),
        ("EXPORT_PROXY__PACING", "x",
         "pacing: must be a mapping, as JSON (it comes from EXPORT_PROXY__PACING)"),
        ("EXPORT_PROXY__ADMIN__ALLOWED_HOSTS", "a,b",
         ("admin.allowed_hosts: must be a list, as JSON"
          " (it comes from EXPORT_PROXY__ADMIN__ALLOWED_HOSTS)")),
        ("EXPORT_PROXY__ACCOUNTS", "[{]",
         "accounts: must be a list, as JSON (it comes from EXPORT_PROXY__ACCOUNTS)"),
        ("EXPORT_PROXY__ACCOUNTS", '[{"name": "a", "client_id": "b", "interval": "1"}]',
         "accounts[0].interval: must be a number"),
        ("EXPORT_PROXY__ACCOUNTS", "[" * 100_000,
         "accounts: must be a list, as JSON (it comes from EXPORT_PROXY__ACCOUNTS)"),
        ("EXPORT_PROXY__LISTEN__TLS", "x",
         "listen.tls: must be a mapping, as JSON (it comes from EXPORT_PROXY__LISTEN__TLS)"),
    ],
)  # fmt: skip
def test_a_wrong_override_is_one_line(problems: Problems, name: str, text: str, line: str) -> None:
    assert problems(**{name: text}) == (line,)


def test_other_variables_and_the_process_do_not_matter(
    read: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EXPORT_PROXY__PACING__INTERVAL", "9")
    monkeypatch.setenv("PACING", "{}")
    assert read(EXPORT_PROXY_PACING="x", PACING="y").pacing == Pacing()
    assert Settings(upstream=Upstream(api_url="http://a", login_url="http://a")).pacing == Pacing()


def test_references_are_replaced_in_values_only(read: Load) -> None:
    settings = read(
        """
# ${NOT_LOOKED_AT}
pacing:
  interval: "${INTERVAL}"
  max_queue: ${QUEUE}
routes: [{name: a, paths: ["/${PART}/**"], paced: "${PACED}"}]
store: {url: "redis://:${PASSWORD}@h/0"}
accounts: [{name: a, client_id: "$${A}$${", client_secret: "$x${PASSWORD}"}]
""",
        INTERVAL="0.125",
        QUEUE="3",
        PART="a",
        PACED="true",
        PASSWORD="p${PART}",
    )
    assert (settings.pacing.interval, settings.pacing.max_queue) == (0.125, 3)
    assert settings.routes[0].paths == ("/a/**",)
    assert settings.routes[0].paced is True
    assert settings.store.url.get_secret_value() == "redis://:p${PART}@h/0"
    (account,) = settings.accounts
    assert account.client_id == "${A}${"
    assert account.client_secret == SecretStr("$xp${PART}")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("listen: {host: '${GONE}'}",
         "listen.host: the environment variable GONE is not set"),
        ("pacing: {interval: '${GONE}'}",
         "pacing.interval: the environment variable GONE is not set"),
        ("listen: {host: '${}'}",
         "listen.host: has a '${' without a NAME and a '}'; a plain one is written '$${'"),
        ("pacing: {interval: '${HERE}'}",
         "pacing.interval: must be a number (it comes from HERE)"),
    ],
)  # fmt: skip
def test_a_reference_that_leads_nowhere(problems: Problems, text: str, line: str) -> None:
    assert problems(text, HERE="x") == (line,)


def test_secrets_are_not_shown_by_settings(read: Load) -> None:
    settings = read(
        f"""
upstream: {{api_url: 'https://a', login_url: 'https://a', proxy_url: 'http://u:{SECRET}@p:3128'}}
accounts: [{{name: a, client_id: b, client_secret: "${{LONDON}}"}}]
store: {{url: "rediss://:{SECRET}@h:6379/0"}}
""",
        above="",
        LONDON=SECRET,
    )
    account = settings.accounts[0]
    assert account.client_secret is not None
    assert account.client_secret.get_secret_value() == SECRET
    shown = [repr(settings), str(settings), repr(account), repr(settings.model_dump())]
    assert [SECRET in text for text in [*shown, settings.model_dump_json()]] == [False] * 5


@pytest.mark.parametrize(
    "text",
    [
        "accounts: [{name: a, client_id: b, client_secret: {SECRET: 1}}]",
        "accounts: [{name: a, client_id: b, client_secret: [SECRET]}]",
        "accounts: [{name: a, client_id: b, client_secret: SECRET, client_secret_file: c}]",
        "accounts: [{name: a, client_id: b, client_secret: SECRET, extra: 1}]",
        "accounts: [{name: a, client_id: b, client_secret: SECRET, keys: [SECRET]}]",
        "accounts: [{name: SECRET!, client_id: b}]",
        "accounts: SECRET",
        "accounts: *SECRET",
        "accounts: !SECRET [a]",
        "accounts: !SECRET!x [a]",
        'accounts: [{client_secret: "SECRET',
        "store: {url: 'redis://:SECRET@h:x/0'}",
        "pacing: {interval: SECRET}",
        "log: {level: SECRET}",
        "routes: [{name: a, paths: ['/SECRET?']}]",
        "routes: [{name: a, paths: [SECRET]}]",
    ],
)
def test_secrets_are_not_shown_by_errors(read: Load, text: str) -> None:
    with pytest.raises(ConfigError) as refused:
        read(text.replace("SECRET", SECRET) + "\n")
    error = refused.value
    assert SECRET not in f"{error} {error!r} {error.problems}"
    assert error.__context__ is None  # a traceback would print what came before, values included


def test_secrets_are_not_shown_by_overrides_that_fail(read: Load) -> None:
    accounts = json.dumps([{"name": "a", "client_secret": SECRET}])
    for wrong in (accounts, accounts[:-1]):
        with pytest.raises(ConfigError) as refused:
            read(EXPORT_PROXY__ACCOUNTS=wrong)
        assert SECRET not in f"{refused.value!r}"
        assert refused.value.__context__ is None


def test_a_model_built_by_hand_does_not_quote_values_either() -> None:
    with pytest.raises(ValidationError) as refused:
        Settings.model_validate({"store": {"url": SECRET}})
    assert SECRET not in str(refused.value)


def test_default_routes_guard_the_shared_token_first() -> None:
    assert [(route.name, route.deny, route.paced) for route in DEFAULT_ROUTES] == [
        ("client-secrets", True, False),
        ("blocked", True, False),
        ("exports", False, True),
        ("api", False, False),
    ]
