"""Taking a request in, step by step: its head, its limit, its caller, its body.

Nothing has been sent yet. So requests that wait here are refused as soon as the drain begins.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, assert_never

from proxy.forwarding.attempts import QueueCaller
from proxy.forwarding.drain import Drain
from proxy.forwarding.exchange import Exchange
from proxy.http.bodies import Bodies
from proxy.http.head import check_head
from proxy.http.messages import Outgoing
from proxy.http.request import Request
from proxy.identity import callers
from proxy.identity.callers import Caller, Configured, Identity, Stranger
from proxy.identity.findings import Denied
from proxy.pacing.account import Account
from proxy.pacing.accounts import Accounts
from proxy.problems import draining
from proxy.rules.prefer import prefer_wait
from proxy.rules.repeats import Digests, digests_of, scope_of
from proxy.rules.targets import Target
from proxy.settings import Settings
from proxy.tokens.account_token import TokenKeeper


class Identified(NamedTuple):
    """The account of a request, and the caller as which it takes turns.

    `managed` is the account's own token, if the request is sent with that one. `key_name` is the
    name of the key that the caller presented, if it has one.
    """

    account: Account
    managed: TokenKeeper | None
    caller: QueueCaller
    key_name: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Intake:
    """Takes requests in, or refuses them with a Problem."""

    settings: Settings
    pseudonym: str
    identity: Identity
    accounts: Accounts
    bodies: Bodies
    drain: Drain

    def target(self, request: Request) -> Target:
        """Check the head and return its target."""
        return check_head(request, self.pseudonym)

    def limit(self, request: Request) -> float:
        """Return the seconds the request may wait in all: as configured, or by `Prefer: wait`."""
        wish = prefer_wait(request.headers.getall("Prefer", ()))
        longest = self.settings.pacing.max_wait
        return longest if wish is None else min(wish, longest)

    def refuse_when_draining(self) -> None:
        """Refuse a request that comes after the shutdown has begun."""
        if self.drain.has_begun:
            raise draining()

    async def identify(self, request: Request) -> Identified | Denied:
        """Return whose request it is, or the API's own refusal of the caller's token.

        Raises the Problem `queue-full` when there are too many strangers, or what identity raises.
        """
        authorization: Sequence[str] = request.headers.getall("Authorization", ())
        caller = self.identity.at_once(authorization)
        if caller is None:
            with self.drain.interrupts():
                caller = await self.identity.caller(authorization, peer=request.peer)
        managed: TokenKeeper | None = None
        match caller:
            case Denied():
                return caller
            case Configured(name, is_service):
                account = self.accounts.configured(name)
                managed = self.identity.tokens.get(name) if is_service else None
            case callers.Client(account_id):
                account = self.accounts.unconfigured(account_id)
            case Stranger(token_hash, sure):
                account = self.accounts.unidentified(token_hash)
                account.allowance.may_be_another = not sure
            case _:
                assert_never(caller)
        key = caller.key if isinstance(caller, Configured) else None
        queue_caller = self._queue_caller(caller, authorization[0], request.peer)
        return Identified(account, managed, queue_caller, None if key is None else key.name)

    def _queue_caller(self, caller: Caller, credential: str, address: str) -> QueueCaller:
        """Return the caller that takes turns: by its key, else by its credential and address."""
        if self.settings.pacing.fairness == "none":
            return QueueCaller(None)
        if isinstance(caller, Configured) and caller.key is not None:
            return QueueCaller(caller.key, caller.key.weight)
        return QueueCaller((hash(credential), address))

    def digests(self, exchange: Exchange, outgoing: Outgoing) -> Digests:
        """Return the names by which the request is recognised when its caller sends it again."""
        request, account = exchange.request, exchange.account
        authorization = request.headers.getall("Authorization", ())
        address = "" if self.identity.is_key(authorization) else request.peer
        scope = scope_of(account.allowance.key if account else "", ",".join(authorization), address)
        key = ", ".join(request.headers.getall("Idempotency-Key", ())).strip()
        return digests_of(scope, key, outgoing.method, outgoing.target, outgoing.body)

    async def body(self, request: Request, limit: int | None = None) -> bytes:
        """Return the body, of `limit` bytes at most; call `release` when it is not needed."""
        if request.is_whole:  # nothing to wait for
            self.refuse_when_draining()
            return await self.bodies.read(request, limit)
        with self.drain.interrupts():
            return await self.bodies.read(request, limit)

    def release(self, request: Request) -> None:
        """Note that the body of a request is no longer needed."""
        self.bodies.release(request)
