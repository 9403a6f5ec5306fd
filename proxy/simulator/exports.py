"""The exports that were created, and the paths they live under.

No I/O and no clock. Several spellings of a path mean the same resource, as behind a lenient
gateway: a client that paces by the spelling alone fails.
"""

import posixpath
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

FAMILIES: Final = (
    "/api/v2/recordings/exports",
    "/api/v2/recording/jobs",
    "/api/v2/recording/batchrequests",
)
KEY_FIELD: Final = "externalId"
KEY_HEADER: Final = "X-Export-Key"


def normalise(path: str) -> str:
    """Reduce a decoded path: case, `;params`, empty and dot segments make no difference."""
    bare = (segment.partition(";")[0] for segment in path.casefold().split("/"))
    return posixpath.normpath("/" + "/".join(filter(None, bare)))


def family_of(path: str) -> str | None:
    """Name the family of paced paths that a normalised path belongs to."""
    return next((root for root in FAMILIES if path == root or path.startswith(f"{root}/")), None)


def key_of(header: str | None, body: object) -> str | None:
    """Read the key by which a caller tells its exports apart; the header field goes first."""
    if header is not None or not isinstance(body, dict):
        return header
    value = body.get(KEY_FIELD)
    return value if isinstance(value, str) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """One created export."""

    id: str
    family: str
    state: str = "PENDING"

    def body(self) -> dict[str, object]:
        return {"id": self.id, "state": self.state, "selfUri": f"{self.family}/{self.id}"}


class AccountExports:
    """The exports of one account, oldest first, and how often each key created one."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._created: OrderedDict[str, tuple[Export, str | None]] = OrderedDict()
        self._keys: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._created)

    def create(self, export: Export, key: str | None) -> None:
        self._created[export.id] = (export, key)
        if key is not None:
            self._keys[key] += 1
        if len(self._created) > self._size:
            self._forget(next(iter(self._created)))

    def find(self, family: str, export_id: str) -> Export | None:
        export, _ = self._created.get(export_id, (None, None))
        return export if export is not None and export.family == family else None

    def put(self, export: Export) -> None:
        """Replace an export by its changed self."""
        _, key = self._created[export.id]
        self._created[export.id] = (export, key)

    def of_family(self, family: str) -> Iterable[Export]:
        return (export for export, _ in self._created.values() if export.family == family)

    def duplicates(self) -> dict[str, int]:
        """Count the creations of each key that created more than one export."""
        return {key: count for key, count in self._keys.items() if count > 1}

    def _forget(self, export_id: str) -> None:
        _, key = self._created.pop(export_id)
        if key is not None:
            self._keys[key] -= 1
            self._keys += Counter()


class Exports:
    """The exports of every account; no account sees another's."""

    def __init__(self, size_per_account: int) -> None:
        self._accounts: defaultdict[str, AccountExports] = defaultdict(
            lambda: AccountExports(size_per_account)
        )

    def of(self, account: str) -> AccountExports:
        return self._accounts[account]

    def reset(self) -> None:
        self._accounts.clear()
