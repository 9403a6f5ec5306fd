"""What is known of one request: its times, its attempts, and the line the log gets of it."""

import pytest

from proxy.forwarding.exchange import Exchange
from tests.kit.clock import FakeClock
from tests.kit.requests import request_of


def exchange_of(clock: FakeClock, path: str = "/api", **headers: str) -> Exchange:
    return Exchange(request_of("POST", path, headers), "id-1", clock, path=path)


@pytest.mark.parametrize(
    ("fact", "longest"), [("path", 512), ("user_agent", 256), ("traceparent", 256)]
)
def test_what_a_caller_wrote_is_cut_in_the_log(fact: str, longest: int) -> None:
    headers = {"User-Agent": "a" * 5000, "traceparent": "t" * 5000}
    facts = exchange_of(FakeClock(), "/" + "p" * 5000, **headers).facts(code=200, seconds=1.0)
    assert len(str(facts[fact])) == longest


def test_nothing_of_a_target_is_logged_but_its_accepted_path() -> None:
    request = request_of("POST", "http://user:s3cr3t@api.example/api?token=s3cr3t#s3cr3t", {})
    exchange = Exchange(request, "id-1", FakeClock())
    assert exchange.facts(code=400, seconds=1.0)["path"] == ""
    exchange.path = "/api"
    assert exchange.facts(code=200, seconds=1.0)["path"] == "/api"


async def test_only_the_time_the_api_takes_is_no_waiting() -> None:
    clock = FakeClock()
    exchange = exchange_of(clock)
    exchange.limit = 100.0
    with exchange.spending("queue"):
        await clock.advance(1)
    with exchange.spending("token"):
        await clock.advance(2)
    with exchange.spending("pause"):
        await clock.advance(4)
    with exchange.spending("upstream"):
        await clock.advance(8)
    assert (exchange.waited, exchange.may_wait, exchange.elapsed) == (7.0, 93.0, 15.0)
    facts = exchange.facts(code=200, seconds=15.0)
    assert (facts["waited"], facts["token"], facts["upstream"]) == (7.0, 2.0, 8.0)


async def test_time_is_counted_for_what_it_turns_out_to_be() -> None:
    clock = FakeClock()
    exchange = exchange_of(clock)
    with exchange.spending("upstream") as spell:
        await clock.advance(3)
        spell.part = "connecting"
    assert (exchange.waited, exchange.spent["upstream"]) == (3.0, 0.0)


async def test_time_is_counted_when_the_block_fails() -> None:
    clock = FakeClock()
    exchange = exchange_of(clock)
    with pytest.raises(TimeoutError), exchange.spending("upstream"):  # noqa: PT012 -- time passes
        await clock.advance(3)
        raise TimeoutError
    assert exchange.spent["upstream"] == 3.0


async def test_the_parts_of_server_timing_sum_to_the_elapsed_time() -> None:
    clock = FakeClock()
    exchange = exchange_of(clock)
    with exchange.spending("queue"):
        await clock.advance(2)
        exchange.held = 0.5
    with exchange.spending("upstream"):
        await clock.advance(1)
    assert exchange.server_timing() == (
        "queue;dur=1500.0, hold;dur=500.0, token;dur=0.0, upstream;dur=1000.0"
    )


def test_an_answer_that_broke_off_is_no_answer_of_the_api() -> None:
    exchange = exchange_of(FakeClock())
    exchange.answered_by_api("c-1")
    exchange.ended_here()
    facts = exchange.facts(code=499, seconds=1.0)
    assert (facts["origin"], facts["correlation_id"]) == ("proxy", "c-1")
