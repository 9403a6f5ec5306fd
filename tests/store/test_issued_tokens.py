"""All replicas know the tokens issued through one of them, and believe no forged entry."""

import asyncio
import hashlib
import hmac
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest

from proxy.clock import SystemClock
from proxy.identity.issued_tokens import IssuedTokens
from proxy.rules.digests import hash_token
from proxy.store.connection import Connection
from proxy.store.issued_tokens import SharedTokens
from proxy.store.wire import StoreDown
from tests.kit.process import until
from tests.kit.redis import RedisServer, redis_server
from tests.store.test_connection import connected

TOKEN = "the-token"


def key_of(token: str) -> str:
    return "export-proxy:2:token:" + hashlib.sha256(token.encode()).hexdigest()


KEY = key_of(TOKEN)
MANAGED = "a" * 32
STRANGER = "b" * 32
SECRETS: Mapping[str, str] = {MANAGED: "its-secret"}


@dataclass(frozen=True, slots=True)
class Replica:
    tokens: IssuedTokens
    connection: Connection
    secrets: dict[str, str]

    async def knows(self, token: str = TOKEN) -> str | None:
        found = await self.tokens.find(hash_token(token))
        return None if found is None else found.owner.account_id


@asynccontextmanager
async def deployed(folder: Path) -> AsyncIterator[tuple[RedisServer, Replica, Replica]]:
    """Two replicas with the same accounts, each with secrets of its own to change."""
    async with redis_server(folder) as server, AsyncExitStack() as stack:
        replicas = []
        for _ in range(2):
            connection, shared, _ = await stack.enter_async_context(connected(server))
            replicas.append(_replica(connection, shared))
        yield server, replicas[0], replicas[1]


def _replica(connection: Connection, shared: SharedTokens) -> Replica:
    secrets = dict(SECRETS)

    async def secret_of(account: str) -> str | None:
        return secrets.get(account)

    tokens = IssuedTokens(clock=SystemClock(), limit=10, shared=shared, secret_of=secret_of)
    return Replica(tokens, connection, secrets)


def sealed(account: str, expires: int, secret: str) -> str:
    message = f"{KEY.rpartition(':')[2]} {account} {expires}".encode()
    return f"{account} {expires} {hmac.new(secret.encode(), message, 'sha256').hexdigest()}"


async def lookups(server: RedisServer) -> int:
    """How often a token was looked up since the last `forget_calls`."""
    stats = await server.client.info("commandstats")
    marks = stats.get("cmdstat_expire", {"calls": 0})  # one for each look at the mark
    return int(stats["cmdstat_mget"]["calls"]) - int(marks["calls"])


@pytest.mark.parametrize("account", [MANAGED, STRANGER])
async def test_token_issued_through_one_is_known_to_the_other(account: str, tmp_path: Path) -> None:
    async with deployed(tmp_path) as (server, here, there):
        await here.tokens.add(TOKEN, account, 60)
        assert await there.knows() == account
        assert 55 <= await server.client.ttl(KEY) <= 60
        text = repr(await server.everything())
        assert TOKEN not in text
        assert "its-secret" not in text


async def test_what_is_known_is_not_asked_for_again(tmp_path: Path) -> None:
    async with deployed(tmp_path) as (server, here, there):
        await here.tokens.add(TOKEN, STRANGER, 60)
        await there.knows()
        await server.forget_calls()
        for _ in range(20):
            assert await there.knows() == STRANGER
            assert await there.knows("unknown") is None
        assert await lookups(server) == 1


async def test_token_ends_in_the_store_with_its_life(tmp_path: Path) -> None:
    async with deployed(tmp_path) as (server, here, there):
        await here.tokens.add(TOKEN, STRANGER, 2.0)
        assert await server.client.exists(KEY)

        async def is_gone() -> bool:
            return not await server.client.exists(KEY)

        await until(is_gone)
        assert await there.knows() is None
        assert await here.knows() is None


FAR = 4_000_000_000


@pytest.mark.parametrize(
    "value",
    [
        f"{MANAGED} {FAR} ",
        sealed(STRANGER, FAR, "its-secret"),
        f"{MANAGED} {FAR} {'0' * 64}",
        sealed(MANAGED, FAR, "another-secret"),
        sealed(STRANGER, FAR, "its-secret").replace(STRANGER, MANAGED),
        sealed(MANAGED, FAR - 1, "its-secret").replace(str(FAR - 1), str(FAR)),
        sealed(MANAGED, 1_000_000_000, "its-secret"),
        f"{MANAGED} {'9' * 5000} x",
        f"{MANAGED} ٣ x",
        MANAGED,
        "",
    ],
    ids=[
        *("no seal", "nobody's seal", "zeros", "other secret", "other account", "other expiry"),
        *("expired", "endless", "not ASCII", "no date", "empty"),
    ],
)
async def test_entry_that_is_not_ours_selects_nothing(value: str, tmp_path: Path) -> None:
    async with deployed(tmp_path) as (server, _, there):
        await server.client.set(KEY, value)
        assert await there.knows() is None
        assert there.connection.is_up


async def test_sealed_entry_selects_its_account(tmp_path: Path) -> None:
    """The counterpart of the forgeries above."""
    async with deployed(tmp_path) as (server, _, there):
        await server.client.set(KEY, sealed(MANAGED, FAR, "its-secret"))
        assert await there.knows() == MANAGED


async def test_entry_from_before_the_secret_changed_selects_nothing(tmp_path: Path) -> None:
    async with deployed(tmp_path) as (_, here, there):
        await here.tokens.add(TOKEN, MANAGED, 60)
        there.secrets[MANAGED] = "a-new-secret"
        assert await there.knows() is None


async def test_entry_of_another_type_is_none(tmp_path: Path) -> None:
    async with deployed(tmp_path) as (server, here, there):
        await cast("Any", server.client.rpush(KEY, "x"))
        assert await there.knows() is None
        assert there.connection.is_up
        await here.tokens.add(TOKEN, STRANGER, 60)
        assert await server.client.type(KEY) == b"string"


async def test_without_the_store_tokens_are_recognised_by_each_replica_alone(
    tmp_path: Path,
) -> None:
    async with deployed(tmp_path) as (server, here, there):
        await server.kill()
        await here.tokens.add(TOKEN, STRANGER, 60)
        assert await here.knows() == STRANGER
        with pytest.raises(StoreDown):
            await there.knows()


async def test_many_requests_at_once_are_answered_by_one_look(tmp_path: Path) -> None:
    async with deployed(tmp_path) as (server, here, there):
        await here.tokens.add(TOKEN, STRANGER, 60)
        await server.forget_calls()
        loop = asyncio.get_running_loop()
        asked = [loop.create_task(there.knows()) for _ in range(50)]
        await asyncio.sleep(0)  # noqa: TID251 -- yields
        for impatient in asked[::2]:
            impatient.cancel()
        assert await asyncio.gather(*asked[1::2]) == [STRANGER] * 25
        assert await lookups(server) == 1


async def test_what_the_store_lost_it_is_told_again(tmp_path: Path) -> None:
    """After an outage, and whenever it turns out to have forgotten."""
    async with deployed(tmp_path) as (server, here, _):
        await server.kill()
        await here.tokens.add(TOKEN, MANAGED, 60)

        async def has_it() -> bool:
            return bool(await server.client.exists(KEY))

        await server.start()
        await until(has_it, within=10)
        await server.flush()
        await until(has_it, within=10)
        assert (await server.everything())[KEY].startswith(f"b'{MANAGED} ")


async def test_replica_that_asked_too_early_asks_again_soon(tmp_path: Path) -> None:
    """The store is back, or was flushed, and has yet to be told of the token again."""
    async with deployed(tmp_path) as (server, here, there):
        assert await there.knows() is None
        await server.kill()
        await here.tokens.add(TOKEN, MANAGED, 60)
        await server.start()

        async def is_known() -> bool:
            return there.connection.is_up and await there.knows() == MANAGED

        await until(is_known, within=10)
        assert await there.knows("another") is None
        await server.flush()
        await here.tokens.add("another", MANAGED, 60)

        async def another_is_known() -> bool:
            return await there.knows("another") == MANAGED

        await until(another_is_known, within=10)


async def test_what_is_lost_while_it_is_told_again_is_told_once_more(tmp_path: Path) -> None:
    async with deployed(tmp_path) as (server, here, _):
        for number in range(10):
            await here.tokens.add(str(number), STRANGER, 60)
        await server.forget_calls()
        restore = here.connection.restorers[-1]
        restore()
        await asyncio.sleep(0)  # noqa: TID251 -- yields
        restore()

        async def all_were_told_twice() -> bool:
            return await server.calls("set") >= 2 * 10

        await until(all_were_told_twice)


async def test_entry_of_an_account_that_was_removed_selects_nothing(tmp_path: Path) -> None:
    async with deployed(tmp_path) as (_, here, there):
        await here.tokens.add(TOKEN, MANAGED, 60)
        assert await there.knows() == MANAGED
        del there.secrets[MANAGED]
        there.tokens.forget(MANAGED)
        assert await there.knows() is None
