"""The store of a single process: every turn is ours."""

from proxy.store import SharedLine


class Alone:
    """Turns for one replica."""

    spread = 1
    is_refusing = False

    def opened(self, line: SharedLine) -> None:
        """The line's own pace is all there is."""

    def wanted(self, line: SharedLine) -> None:
        """The turn is always ours."""

    def used(self, line: SharedLine, cost: float) -> None:
        """Nobody is to be told."""

    def unused(self, line: SharedLine) -> None:
        """Nobody else wants it."""

    def held(self, key: str, seconds: float) -> None:
        """Nobody else has to obey."""
