"""What is known of the servers the proxy talks to: if the store is up, how far clocks are off."""

from proxy.telemetry.families import Families


class ServerMetrics:
    """Notes the state of the store, and the clocks of the API and the login server."""

    def __init__(self, families: Families) -> None:
        self._store_bypassed = families.counter(
            "store_degraded_decisions", "Sends decided without the shared store."
        )
        self._store_up = families.gauge("store_up", "1 while the store of the pace answers.")
        self.store_is(up=True)
        self._skew = families.gauge(
            "clock_skew_seconds",
            "The server's clock minus ours, by the Date of its last answer.",
            "server",
        )
        self.skews: dict[str, float] = {}

    def store_is(self, *, up: bool) -> None:
        """Note whether the shared store answers."""
        self.is_store_up = up
        self._store_up[()] = up

    def store_bypassed(self) -> None:
        """Count a send that was decided without the shared store."""
        self._store_bypassed[()] += 1

    def clock_skew(self, server: str, seconds: float) -> None:
        """Note how far a server's clock (api or login) is ahead of ours."""
        self.skews[server] = seconds
        self._skew[(server,)] = seconds
