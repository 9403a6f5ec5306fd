"""The store of a single process: every turn is ours."""

from proxy.store import FREE, SharedLine


class Alone:
    """Turns for one replica."""

    replicas = 1
    spread = 1
    patience = 0.0
    is_refusing = False

    def opened(self, line: SharedLine) -> None:
        """The line's own pace is all there is."""
        line.turn = FREE

    def wanted(self, line: SharedLine) -> None:
        """The turn is always ours."""

    def unused(self, line: SharedLine) -> None:
        """Nobody else wants it."""

    def used(self, line: SharedLine) -> None:
        """Nobody is to be told."""

    def held(self, key: str, seconds: float) -> None:
        """Nobody else has to obey."""
