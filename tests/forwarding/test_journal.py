"""The record of a request that is over."""

from prometheus_client import CollectorRegistry

from proxy.forwarding.attempts import outcome_unknown
from proxy.forwarding.exchange import Exchange
from proxy.forwarding.journal import Journal
from proxy.rules.incidents import Trouble
from proxy.telemetry.callers import Callers
from proxy.telemetry.metrics import Metrics
from proxy.telemetry.refusals import Refusals
from tests.incidents.test_watch import Sight
from tests.kit.requests import request_of


async def test_answer_lost_after_a_403_and_a_new_token_is_in_doubt() -> None:
    sight = Sight()
    journal = Journal(
        clock=sight.clock,
        metrics=Metrics(CollectorRegistry()),
        refusals=Refusals(),
        callers=Callers(),
        watch=sight.watch,
        may_log=lambda _: False,
        log=lambda *_: None,
    )
    exchange = Exchange(request_of("POST"), "id-1", sight.clock)
    exchange.account = sight.accounts.configured("london")
    exchange.lacks = "permission"  # of the first attempt
    journal.refused(exchange, outcome_unknown(timed_out=False))
    journal.over(exchange, 502)
    assert isinstance(await sight.sighting("in_doubt"), Trouble)
