"""Whom a credential identifies, as a value: no account, no queue, no wire."""

import asyncio
import hashlib
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from proxy.http.client import Client as HttpClient
from proxy.identity.callers import Client, Configured, Identity, Stranger
from proxy.identity.issuer import Issuer
from proxy.problems import Problem
from proxy.rules.digests import account_id, hash_token
from proxy.rules.logins import Secret
from proxy.telemetry.metrics import Metrics
from proxy.tokens.credentials import Credentials
from proxy.tokens.login_server import LoginServer
from proxy.tokens.managed import ManagedTokens
from tests.kit.clock import FakeClock
from tests.kit.proxy import settings_for

LONDON = {"name": "london", "client_id": "london-id"}
RIGHT = Secret("its-secret", "its-secret")
NOWHERE = "http://127.0.0.1:9"


@asynccontextmanager
async def identity(clock: FakeClock, **identity: Any) -> AsyncIterator[Identity]:
    """Make one that knows the named account london, and a key of the managed account paris."""
    paris = {
        "name": "paris",
        "client_id": "paris-id",
        "client_secret": "its-secret",
        "keys": ["sha256:" + hashlib.sha256(b"a-key").hexdigest()],
    }
    settings = settings_for(NOWHERE, accounts=[LONDON, paris], identity=identity)
    upstream = HttpClient(settings.upstream, NOWHERE, clock=clock)
    async with asyncio.TaskGroup() as tasks:
        tokens = ManagedTokens(
            LoginServer(upstream, clock=clock),
            clock=clock,
            metrics=Metrics(CollectorRegistry()),
            random=lambda: 0.0,
            tasks=tasks,
        )
        tokens.apply(settings)
        issuer = Issuer(settings, clock=clock)
        yield Identity(
            settings,
            clock=clock,
            tokens=tokens,
            issuer=issuer,
            api=upstream,
            spawn=tasks.create_task,
        )
        tokens.close()
        await upstream.close()


async def test_unknown_token_is_a_stranger() -> None:
    async with identity(FakeClock()) as it:
        assert await it.caller(["Bearer t"], peer="p") == Stranger(hash_token("t"), sure=True)


async def test_issued_token_names_its_client() -> None:
    async with identity(FakeClock()) as it:
        await it.note_issued("t", "berlin-id", 600)
        assert await it.caller(["Bearer t"], peer="p") == Client(account_id("berlin-id"))


async def test_issued_token_of_a_configured_client_names_the_account() -> None:
    async with identity(FakeClock()) as it:
        await it.note_issued("t", "london-id", 600)
        assert await it.caller(["Bearer t"], peer="p") == Configured("london")


async def test_key_names_its_account() -> None:
    async with identity(FakeClock()) as it:
        caller = await it.caller(["Bearer a-key"], peer="p")
        assert isinstance(caller, Configured)
        assert (caller.name, caller.is_service) == ("paris", True)
        assert caller.key is not None
        assert caller.key.weight == 1


async def test_forgotten_client_is_a_stranger() -> None:
    async with identity(FakeClock()) as it:
        await it.note_issued("t", "london-id", 600)
        it.forget("london-id")
        assert isinstance(await it.caller(["Bearer t"], peer="p"), Stranger)


async def test_stranger_is_refused_where_everybody_must_be_known() -> None:
    async with identity(FakeClock(), unidentified="reject") as it:
        with pytest.raises(Problem) as refused:
            await it.caller(["Bearer t"], peer="p")
    assert refused.value.name == "unauthenticated"


async def test_ten_wrong_secrets_of_one_address_do_not_concern_another() -> None:
    async with identity(FakeClock()) as it:
        paris = it.logins.managed(["paris-id"])
        assert paris is not None
        for _ in range(10):
            assert not await it.logins.check_secret(paris, Secret("wrong", "wrong"), "192.0.2.1")
        with pytest.raises(Problem):
            await it.logins.check_secret(paris, RIGHT, "192.0.2.1")
        assert await it.logins.check_secret(paris, RIGHT, "192.0.2.2")


async def test_guesses_while_the_secret_is_read_are_counted_too() -> None:
    """All of them have passed the check of the count before the first one is compared."""
    goes_on = threading.Event()

    def read() -> str:
        goes_on.wait(20)
        return "its-secret"

    clock, loop = FakeClock(), asyncio.get_running_loop()
    async with identity(clock) as it:
        paris = it.logins.managed(["paris-id"])
        assert paris is not None
        slow = Credentials("paris-id", read, is_file=True)
        paris.apply("paris", slow, settings_for(NOWHERE), None)
        guess = Secret("wrong", "wrong")
        guesses = [
            loop.create_task(it.logins.check_secret(paris, guess, "192.0.2.1")) for _ in range(20)
        ]
        await clock.advance(0)
        assert not any(one.done() for one in guesses)
        goes_on.set()
        told = await asyncio.gather(*guesses, return_exceptions=True)
    assert [isinstance(one, Problem) for one in told] == [False] * 10 + [True] * 10
