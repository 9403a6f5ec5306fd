"""The table of tokens whose client is known: what it keeps, and for how long."""

from proxy.identity.issued_tokens import Found, IssuedTokens, Owner
from proxy.rules.digests import hash_token
from tests.kit.clock import FakeClock


async def no_secret(_: str) -> None:
    return None


def table(clock: FakeClock, limit: int = 3) -> IssuedTokens:
    return IssuedTokens(clock=clock, limit=limit, shared=None, secret_of=no_secret)


async def known(tokens: IssuedTokens, *names: str) -> list[str]:
    return [name for name in names if await tokens.find(hash_token(name)) is not None]


async def test_renewed_log_in_renews_and_evicts_nothing() -> None:
    clock = FakeClock()
    tokens = table(clock)
    for name in ("a", "b", "c"):
        await tokens.add(name, name, 600)
    await clock.advance(500)
    for _ in range(3):
        await tokens.add("a", "a", 600)
    assert await known(tokens, "a", "b", "c") == ["a", "b", "c"]
    await clock.advance(500)
    assert await known(tokens, "a", "b", "c") == ["a"]


async def test_new_token_of_a_client_pushes_out_its_own_oldest_one() -> None:
    tokens = table(FakeClock())
    for name, client in (("a", "x"), ("b1", "y"), ("b2", "y"), ("b3", "y")):
        await tokens.add(name, client, 600)
    assert await known(tokens, "a", "b1", "b2", "b3") == ["a", "b2", "b3"]


async def test_new_client_pushes_out_the_oldest_of_all() -> None:
    tokens = table(FakeClock())
    for name in ("a", "b", "c", "d"):
        await tokens.add(name, name, 600)
    assert await known(tokens, "a", "b", "c", "d") == ["b", "c", "d"]


async def test_what_the_api_named_is_due_at_its_end_and_still_counts() -> None:
    clock = FakeClock()
    tokens = table(clock)
    owner = Owner("x", by_api=True, organization="o")
    await tokens.add_owner(hash_token("t"), owner, 600)
    assert await tokens.find(hash_token("t")) == Found(owner)
    await clock.advance(600)
    assert await tokens.find(hash_token("t")) == Found(owner, is_due=True)
    tokens.postpone(hash_token("t"), 60)
    assert await tokens.find(hash_token("t")) == Found(owner)
    tokens.drop(hash_token("t"))
    assert await tokens.find(hash_token("t")) is None


async def test_issued_token_ends() -> None:
    clock = FakeClock()
    tokens = table(clock)
    await tokens.add("t", "x", 600)
    await clock.advance(600)
    assert await tokens.find(hash_token("t")) is None
