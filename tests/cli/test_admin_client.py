"""Asking an admin port: each failure is a sentence, and names no class of a library."""

import re

import pytest

from proxy.cli.admin_client import NoAnswer, get
from tests.kit.listener import HOST
from tests.kit.upstream import Garbage, RawUpstream, ReadThenClose, Reply, Step, free_port

JSON = [("Content-Type", "application/json")]
TEXT = [("Content-Type", "text/plain; charset=utf-8")]


async def complaint(url: str) -> str:
    with pytest.raises(NoAnswer) as caught:
        await get(url, "status.json")
    text = str(caught.value)
    assert not re.search(r"[A-Za-z]+(Error|Exception|URL)\b", text.replace("a URL", "")), text
    return text.removeprefix(f"{url} ")


async def test_the_answer_is_an_object_at_that_path() -> None:
    async with RawUpstream(default=Reply(200, JSON, b'{"a": 1}')) as server:
        assert await get(f"{server.url}/below/", "accounts", "a b") == {"a": 1}
    assert server.requests[0].target == b"/below/accounts/a%20b"


@pytest.mark.parametrize(
    ("step", "sentence"),
    [
        (Reply(404, TEXT, b"No such account.\n"), "answers 404: No such account."),
        (Reply(404, TEXT, b"a\x1b[2Jb"), "answers 404: a?[2Jb"),
        (Reply(500, [("Content-Type", "text/html")], b"<p>"), "answers 500"),
        (Reply(302, [("Location", "/elsewhere")]), "answers 302"),
        (Reply(200, JSON, b"{"), "does not answer like a proxy"),
        (Reply(200, JSON, b"[" * 100_000), "does not answer like a proxy"),
        (ReadThenClose(), "cannot be reached: the connection broke off"),
        (Garbage(b"SSH-2.0-x\r\n"), "cannot be reached: the answer is not HTTP"),
    ],
)
async def test_what_is_no_answer_of_a_proxy(step: Step, sentence: str) -> None:
    async with RawUpstream(default=step) as server:
        assert await complaint(server.url) == sentence
        assert {request.target for request in server.requests} == {b"/status.json"}


@pytest.mark.parametrize("url", ["nonsense", "http://", "http://[::1", "ftp://localhost"])
async def test_what_is_no_url(url: str) -> None:
    sentence = "cannot be reached: it is not a URL such as http://127.0.0.1:9180"
    assert await complaint(url) == sentence


async def test_a_port_without_a_listener() -> None:
    assert (
        await complaint(f"http://{HOST}:{free_port()}") == "cannot be reached: Connection refused"
    )
