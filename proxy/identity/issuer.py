"""The configured issuer of JWTs: its keys, the connections they come by, and what verifies.

Without `identity.issuer` there is none, and no JWT identifies a caller. A reload that keeps
`jwks_url` keeps the keys.
"""

from proxy.clock import Clock
from proxy.http.client import Client
from proxy.identity.signing_keys import SigningKeys
from proxy.identity.verifier import Verifier
from proxy.settings import Settings


class Issuer:
    """Holds the verifier of the issuer's tokens; `verifier` is None where no issuer is set."""

    def __init__(self, settings: Settings, *, clock: Clock) -> None:
        self.verifier: Verifier | None = None
        self._clock = clock
        self._upstream: Client | None = None
        self._keys: SigningKeys | None = None
        self.apply(settings)

    def apply(self, settings: Settings) -> None:
        """Obey new settings from now on."""
        rules = settings.identity
        if rules.jwks_url is None:
            self.verifier = None
            return
        if self._upstream is None:
            self._upstream = Client(settings.upstream, rules.jwks_url, clock=self._clock)
        self._upstream.apply(settings.upstream, rules.jwks_url)
        if self._keys is None or self._keys.jwks_url != rules.jwks_url:
            self._keys = SigningKeys(self._upstream, rules.jwks_url, clock=self._clock)
        self.verifier = Verifier(rules, self._keys, clock=self._clock)

    async def give_up(self) -> None:
        """Break off a fetch of keys that is still under way."""
        if self._upstream is not None:
            await self._upstream.give_up()

    async def close(self) -> None:
        """Close the connections to the issuer."""
        if self._upstream is not None:
            await self._upstream.close()
