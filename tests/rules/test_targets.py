"""Targets: kept byte for byte, and no spelling of a path escapes the route it belongs to."""

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from proxy.rules.targets import (
    BadTarget,
    MethodNotAllowed,
    PathPattern,
    RouteRule,
    Target,
    find_route,
    parse_target,
    strip_prefix,
)

EXPORTS = "/api/v2/recordings/exports"

PARAMETERS = st.sampled_from(["", ";", ";x", ";a=b;c", ";v=1.2", ";%41"])

EXPORTS_RULE = RouteRule(
    name="exports",
    patterns=(PathPattern.parse(EXPORTS), PathPattern.parse(f"{EXPORTS}/**")),
    methods=None,
)


def rule(name: str, path: str, *methods: str) -> RouteRule:
    return RouteRule(
        name=name,
        patterns=(PathPattern.parse(path),),
        methods=frozenset(methods) if methods else None,
    )


def spellings() -> st.SearchStrategy[str]:
    """The export path with escapes, capitals, parameters and a trailing slash here and there."""
    segments = [
        st.tuples(*(st.sampled_from(spellings_of(char)) for char in segment), PARAMETERS)
        for segment in EXPORTS.split("/")[1:]
    ]
    paths = st.tuples(*(segment.map("".join) for segment in segments)).map("/".join)
    return st.builds("/{}{}".format, paths, st.sampled_from(["", "/"]))


def spellings_of(char: str) -> list[str]:
    cases = (char.lower(), char.upper())
    return [
        *cases,
        *(f"%{ord(case):02x}" for case in cases),
        *(f"%{ord(case):02X}" for case in cases),
    ]


@pytest.mark.parametrize(
    ("raw", "path", "query", "match"),
    [
        ("/", "/", None, "/"),
        ("/api", "/api", None, "/api"),
        ("/api/", "/api/", None, "/api"),
        ("/API/V2", "/API/V2", None, "/api/v2"),
        ("/%65xports", "/%65xports", None, "/exports"),
        ("/%45xports", "/%45xports", None, "/exports"),
        ("/%2d%5F%7e%39%5a", "/%2d%5F%7e%39%5a", None, "/-_~9z"),
        ("/exports;x=1/y;/z", "/exports;x=1/y;/z", None, "/exports/y/z"),
        ("/exports/;x", "/exports/;x", None, "/exports"),
        ("/;x", "/;x", None, "/"),
        ("/a%2Bb%20c%2C", "/a%2Bb%20c%2C", None, "/a%2bb%20c%2c"),
        ("/100%25", "/100%25", None, "/100%25"),
        ("/100%25%20off", "/100%25%20off", None, "/100%25%20off"),
        ("/M%C3%BCller", "/M%C3%BCller", None, "/m%c3%bcller"),
        ("/%E6%97%A5%E6%9C%AC", "/%E6%97%A5%E6%9C%AC", None, "/%e6%97%a5%e6%9c%ac"),
        ("/exports.json", "/exports.json", None, "/exports.json"),
        ("/exports,", "/exports,", None, "/exports,"),
        ("/a.b/..c/d../...", "/a.b/..c/d../...", None, "/a.b/..c/d../..."),
        ("/a:b@c,d|e", "/a:b@c,d|e", None, "/a:b@c,d|e"),
        ("/api?", "/api", None, "/api"),
        ("/api??", "/api", "?", "/api"),
        ("/api?A=%41&b=//../%2F\\%zz", "/api", "A=%41&b=//../%2F\\%zz", "/api"),
        ("/x?x=%20+%2B&y=a%2Cb;c&&", "/x", "x=%20+%2B&y=a%2Cb;c&&", "/x"),
        ("http://evil.example/a?b", "/a", "b", "/a"),
        ("HTTPS://evil.example:8443/a", "/a", None, "/a"),
        ("http://[::1]:80/a", "/a", None, "/a"),
        ("http://evil", "/", None, "/"),
        ("http://evil/", "/", None, "/"),
        ("http://evil?a=b", "/", "a=b", "/"),
    ],
)
def test_accepted(raw: str, path: str, query: str | None, match: str) -> None:
    """Path and query stay as they came; only the copy is made plain."""
    assert parse_target(raw) == Target(path=path, query=query, match=match)


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        ("", "neither"),
        ("*", "neither"),
        ("api", "neither"),
        ("evil.example:443", "neither"),
        ("@evil", "neither"),
        ("?a", "neither"),
        ("ftp://evil/a", "neither"),
        ("http:/evil", "neither"),
        ("http:///a", "neither"),
        ("http://:80/a", "neither"),
        ("http://user@evil/a", "neither"),
        ("http://evil\\@b/a", "neither"),
        ("xhttp://evil/a", "neither"),
        ("/a b", "space"),
        ("/a?b c", "space"),
        ("/a\t", "control"),
        ("/a\n", "control"),
        ("/a\x00", "control"),
        ("/a\x7f", "control"),
        ("/é", "non-ASCII"),
        ("/\udcc3\udca9", "non-ASCII"),
        ("/a?é", "non-ASCII"),
        ("/\u212a", "non-ASCII"),
        ("/a#b", "fragment"),
        ("/a?b#", "fragment"),
        ("http://evil#/a", "fragment"),
        ("/\\evil", "backslash."),
        ("/a%", "invalid"),
        ("/a%4", "invalid"),
        ("/a%4/b", "invalid"),
        ("/a%zz", "invalid"),
        ("/a%%41", "invalid"),
        ("/a%4;1", "invalid"),
        ("/a;%zz", "invalid"),
        ("/a%2Fb", "encoded"),
        ("/a%2fb", "encoded"),
        ("/a%2Eb", "encoded"),
        ("/%2e%2e/a", "encoded"),
        ("/a%5Cb", "encoded"),
        ("/a%5cb", "encoded"),
        ("/a%00", "control"),
        ("/a%09", "control"),
        ("/a%0A", "control"),
        ("/a%1f", "control"),
        ("/a%7F", "control"),
        ("/a%3fx=1", "question mark"),
        ("/a%3F", "question mark"),
        ("/a%23", "hash"),
        ("/a%3b", "semicolon"),
        ("/a%3Bx/b", "semicolon"),
        ("/a%252f", "twice"),
        ("/%2565xports", "twice"),
        ("/%252F%252e%2500", "twice"),
        ("/a%25252f", "twice"),
        ("/a%20", "blank"),
        ("/a%20/b", "blank"),
        ("/a%20;x", "blank"),
        ("/a;x%20/b", "blank"),
        ("/%20a", "blank"),
        ("/a/%20%20/b", "blank"),
        ("/a%C0%AF", "not UTF-8"),
        ("/a%FF", "not UTF-8"),
        ("/a%E2%82", "not UTF-8"),
        ("/a%ED%A0%80", "not UTF-8"),
        ("/a%C2%85", "different ways"),
        ("/a%C2%A0", "different ways"),
        ("/a%C2%AD", "different ways"),
        ("/a%E2%80%8B", "different ways"),
        ("/a%E2%80%A8", "different ways"),
        ("/a%EF%BB%BF", "different ways"),
        ("/a%EF%BC%8Fb", "different ways"),
        ("/%EF%BC%8E%EF%BC%8E/a", "different ways"),
        ("/export%C5%BF", "different ways"),
        ("/a;x=%2f", "encoded"),
        ("//evil.example/a", "empty segment"),
        ("/a//b", "empty segment"),
        ("/a//", "empty segment"),
        ("/a/;x/b", "empty segment"),
        ("/a/;x/", "empty segment"),
        ("http://evil//a", "empty segment"),
        ("/.", "dot segment"),
        ("/..", "dot segment"),
        ("/a/./b", "dot segment"),
        ("/a/../b", "dot segment"),
        ("/a/..;x/b", "dot segment"),
        ("/a/.;", "dot segment"),
        ("http://evil/../a", "dot segment"),
    ],
)
def test_refused(raw: str, reason: str) -> None:
    """What a lenient server might read as another path is refused, with the reason."""
    with pytest.raises(BadTarget, match=reason):
        parse_target(raw)


def test_refusal_does_not_quote_the_target() -> None:
    """A target may hold a secret or a forged line; it stays out of the message."""
    with pytest.raises(BadTarget) as refusal:
        parse_target("/hunter2//x")
    assert "hunter2" not in str(refusal.value)


TARGET_LIKE = st.text(st.sampled_from("/?#%\\;.*:@aZé25EFc \x00\udcff"), max_size=30)
ORIGIN_FORM_LIKE = (TARGET_LIKE | st.text()).map(lambda text: f"/{text}")


@given(TARGET_LIKE | st.text())
def test_any_text_is_refused_or_a_path(raw: str) -> None:
    """Nothing but BadTarget is raised, and what is forwarded can only be a path."""
    try:
        target = parse_target(raw)
    except BadTarget:
        return
    assert re.match(r"/(?!/)", target.path)


@given(ORIGIN_FORM_LIKE)
@example("/a?")
@example("/?a?b")
def test_accepted_target_is_kept_whole(raw: str) -> None:
    """Path and query together are what came in, a bare trailing `?` aside."""
    try:
        target = parse_target(raw)
    except BadTarget:
        return
    if target.query is None:
        assert target.path in (raw, raw.removesuffix("?"))
    else:
        assert f"{target.path}?{target.query}" == raw


@given(ORIGIN_FORM_LIKE | spellings())
def test_copy_is_its_own_copy(raw: str) -> None:
    """Making a copy plain twice changes nothing."""
    try:
        match = parse_target(raw).match
    except BadTarget:
        return
    assert parse_target(match).match == match


@given(spellings())
def test_no_spelling_escapes_the_export_route(raw: str) -> None:
    """Every equivalent spelling of a paced path is on the paced route."""
    assert find_route([EXPORTS_RULE], "POST", parse_target(raw).match) == 0


@given(spellings(), st.data())
def test_no_trick_escapes_the_export_route(raw: str, data: st.DataObject) -> None:
    """A path with a trick in it that a server may undo is refused."""
    trick = data.draw(
        st.sampled_from(
            [
                *("/", "/.", "/x/..", "%2f", "%2e", "%00", "\\", "%5c", "#"),
                *("%3f", "%23", "%3B", "%20", "%09", "%0a", "%252f", "%C0%AF", "%EF%BC%8F"),
            ]
        )
    )
    slash = data.draw(st.sampled_from([found.start() for found in re.finditer("/", raw)]))
    with pytest.raises(BadTarget):
        parse_target(raw[:slash] + trick + raw[slash:] + "/")


@pytest.mark.parametrize(
    ("pattern", "path", "fits"),
    [
        ("/", "/", True),
        ("/", "/a", False),
        ("/a", "/a", True),
        ("/a", "/ab", False),
        ("/a", "/a/b", False),
        ("/A/b", "/a/b", True),
        ("/a.c", "/abc", False),
        ("/a%2B", "/a%2b", True),
        ("/a/*", "/a", False),
        ("/a/*", "/a/b", True),
        ("/a/*", "/a/b/c", False),
        ("/a/*/c", "/a/b/c", True),
        ("/a/*/c", "/a/b/d/c", False),
        ("/*", "/", False),
        ("/a/**", "/a", False),
        ("/a/**", "/ab", False),
        ("/a/**", "/a/b", True),
        ("/a/**", "/a/b/c", True),
        ("/a/*/**", "/a/b", False),
        ("/a/*/**", "/a/b/c", True),
        ("/**", "/", False),
        ("/**", "/a", True),
    ],
)
def test_pattern(pattern: str, path: str, *, fits: bool) -> None:
    """Literal segments compare without case; `*` is one segment, `**` one or more."""
    assert PathPattern.parse(pattern).matches(path) is fits


@pytest.mark.parametrize(
    "text",
    [
        *("", "a", "*", "http://h/a"),
        *("/a/", "/a;b", "/a?b", "/a?", "/%41", "/a//b", "/a/../b"),
        *("/a*", "/*a", "/***", "/**/a", "/a/**/**", "/a/b**"),
    ],
)
def test_pattern_that_could_never_match_is_an_error(text: str) -> None:
    """A pattern that no target can fit would leave its route unguarded."""
    with pytest.raises(ValueError):  # noqa: PT011 - the wording is for people
        PathPattern.parse(text)


def test_first_route_with_path_and_method_wins() -> None:
    """The order of the list decides."""
    rules = [
        rule("blocked", "/api/tokens/**", "POST", "DELETE"),
        rule("tokens", "/api/tokens/*"),
        rule("api", "/api/**"),
    ]
    assert find_route(rules, "POST", "/api/tokens/me") == 0
    assert find_route(rules, "GET", "/api/tokens/me") == 1
    assert find_route(rules, "GET", "/api/tokens/me/x") == 2
    assert find_route(rules, "GET", "/login") is None


def test_method_not_allowed_names_every_method_of_the_path() -> None:
    """Allow is the union over the routes that take the path, in a stable order."""
    rules = [
        rule("write", "/a", "PUT", "POST"),
        rule("read", "/*", "GET", "POST"),
        rule("else", "/b", "DELETE"),
    ]
    assert find_route(rules, "PATCH", "/a") == MethodNotAllowed(("GET", "POST", "PUT"))


def test_methods_are_case_sensitive() -> None:
    """A method name is compared as it is (RFC 9110 section 9.1)."""
    assert find_route([rule("a", "/a", "GET")], "get", "/a") == MethodNotAllowed(("GET",))


@pytest.mark.parametrize(
    ("raw", "prefix", "path", "match"),
    [
        ("/API/v2?q", "", "/API/v2", "/api/v2"),
        ("/gc/API/v2?q", "/gc", "/API/v2", "/api/v2"),
        ("/gc?q", "/gc", "/", "/"),
        ("/gc/?q", "/gc", "/", "/"),
        ("/gc/gc/a?q", "/gc", "/gc/a", "/gc/a"),
        ("/a/b/c?q", "/a/b", "/c", "/c"),
        ("http://h/gc/a?q", "/gc", "/a", "/a"),
    ],
)
def test_prefix_is_stripped(raw: str, prefix: str, path: str, match: str) -> None:
    """What is left is a target as if the prefix had never been there."""
    stripped = strip_prefix(parse_target(raw), prefix)
    assert stripped == Target(path=path, query="q", match=match)


@pytest.mark.parametrize(
    "raw", ["/", "/api", "/gcx/api", "/GC/api", "/%67c/api", "/gc;x/a", "/a/gc"]
)
def test_prefix_is_required(raw: str) -> None:
    """Without the prefix, whole and spelled exactly, there is no target."""
    assert strip_prefix(parse_target(raw), "/gc") is None


def test_a_route_takes_each_of_its_paths() -> None:
    for path in (EXPORTS, f"{EXPORTS}/x"):
        assert find_route([EXPORTS_RULE], "GET", path) == 0
    assert find_route([EXPORTS_RULE], "GET", f"{EXPORTS}x") is None
    assert EXPORTS_RULE.patterns[0].text == EXPORTS


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("/a/", "a pattern is a plain path: no trailing slash, no ';', no '?', no escapes"),
        ("/a*", "'*' stands for a whole segment, and '**' only at the end"),
        ("/**/a", "'*' stands for a whole segment, and '**' only at the end"),
    ],
)
def test_a_bad_pattern_is_explained(text: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        PathPattern.parse(text)


def test_a_route_takes_the_paths_of_each_of_its_patterns() -> None:
    either = RouteRule(
        name="either",
        patterns=(PathPattern.parse("/a"), PathPattern.parse("/b"), PathPattern.parse("/c")),
        methods=None,
    )
    assert [find_route([either], "GET", path) for path in ("/a", "/b", "/c", "/d")] == [
        0,
        0,
        0,
        None,
    ]


def test_a_pattern_keeps_its_text() -> None:
    assert PathPattern.parse("/API/*").text == "/API/*"
