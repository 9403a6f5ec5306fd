"""The settings of a simulator: its pace, its clients and their tokens. Values only."""

from collections.abc import Mapping
from dataclasses import dataclass, field

VOICE_SCOPE = "recordings:export"
DIGITAL_SCOPE = "agent_scripting:export"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientSpec:
    """One service account as the login server knows it."""

    secret: str | None = field(repr=False)
    """None lets any secret in."""
    scopes: frozenset[str] = frozenset({VOICE_SCOPE})
    opaque: bool = False
    """Issue random strings instead of JWTs; the scopes are the same, but unreadable."""
    token_lifetime: float = 86400
    """Seconds, answered as `expires_in` in whole ones. The vendor's default is a day."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatorSettings:
    """Durations are seconds."""

    interval: float = 0.5
    tolerance: float = 0.020
    retry_after: float = 1
    """The shortest pause that a 429 asks for; if the true wait is longer, the 429 names that."""
    hold: float = 0
    """For so long, from an account's first export on, all of its exports are refused."""
    latency: float = 0
    """By so much every answer of the API is held back."""
    clients: Mapping[str, ClientSpec] = field(default_factory=dict)
    any_client: bool = False
    """Clients not listed in `clients` log in too, as `any_client_spec`."""
    any_client_spec: ClientSpec = ClientSpec(secret=None)
    issuer: str = "https://login.simulator.example"
    audience: str = "https://api.simulator.example"
    answer_scope: bool = False
    """Name the scopes in the token answer. The vendor does not, for this grant."""
    organization: str = "simulated-organization"
    """Id of the organization in which the clients work."""
    incident_columns: frozenset[str] = frozenset({"u_account", "u_channel", "u_legal_hold"})
    """Columns of its own that the incident table has."""
    incident_login: tuple[str, str] | None = field(default=None, repr=False)
    """User and password that the incident table wants; None lets any in."""
    ledger_size: int = 20_000
    """Arrivals, and exports, remembered per account; older ones are forgotten."""

    def find_client(self, client_id: str) -> ClientSpec | None:
        known = self.clients.get(client_id)
        if known is None and self.any_client:
            return self.any_client_spec
        return known
