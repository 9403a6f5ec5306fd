"""A strict incident table, as ServiceNow's Table API shows it; no I/O and no clock.

Where an instance is lenient this one refuses: an unknown column (an instance drops it without a
word), a nested value (it is stored as unreadable text), a `number` (the instance counts). A row
that is resolved or closed needs `close_code` and `close_notes`, as the data policy of a new
instance has it. Values come back as text, booleans too.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

STANDARD_COLUMNS: Final = frozenset(
    {
        "assigned_to",
        "assignment_group",
        "caller_id",
        "category",
        "close_code",
        "close_notes",
        "cmdb_ci",
        "comments",
        "contact_type",
        "correlation_display",
        "correlation_id",
        "description",
        "impact",
        "short_description",
        "state",
        "subcategory",
        "urgency",
        "work_notes",
    }
)
_OPERATORS: Final[Mapping[str, Callable[[str, str], bool]]] = {
    "=": str.__eq__,
    "!=": str.__ne__,
    "STARTSWITH": str.startswith,
}
_CONDITION: Final = re.compile(r"(?P<column>[a-z_]+)(?P<operator>!?=|STARTSWITH)(?P<value>.*)")
_SET_BY_ITSELF: Final = frozenset({"number", "sys_id", "active"})
_RESOLVED: Final = "6"
_CLOSED: Final = "7"

Row = dict[str, str]


@dataclass(frozen=True, slots=True)
class TableError:
    """A refusal of the table."""

    status: int
    message: str

    def body(self) -> dict[str, object]:
        return {"error": {"message": self.message, "detail": ""}, "status": "failure"}


class IncidentTable:
    """The rows by their `sys_id`, oldest first."""

    def __init__(self, own_columns: Iterable[str]) -> None:
        self.rows: dict[str, Row] = {}
        self._columns = STANDARD_COLUMNS | frozenset(own_columns)

    def insert(self, document: object) -> Row | TableError:
        values = self._values(document)
        if isinstance(values, TableError):
            return values
        count = len(self.rows) + 1
        sys_id = f"{count:032x}"
        row = {"sys_id": sys_id, "number": f"INC{count:07d}", "active": "true", "state": "1"}
        return self._put(sys_id, {**row, **values})

    def change(self, sys_id: str, document: object) -> Row | TableError:
        if sys_id not in self.rows:
            return TableError(404, "No Record found")
        values = self._values(document)
        if isinstance(values, TableError):
            return values
        return self._put(sys_id, {**self.rows[sys_id], **values})

    def find(self, query: str, *, limit: int) -> list[Row] | TableError:
        """Return the rows that meet every condition of an encoded query."""
        found = [*self.rows.values()]
        for condition in filter(None, query.split("^")):
            parts = _CONDITION.fullmatch(condition)
            if parts is None or parts["column"] not in self._columns | _SET_BY_ITSELF:
                return TableError(400, f"Invalid query: {condition}")
            meets, value = _OPERATORS[parts["operator"]], parts["value"]
            found = [row for row in found if meets(row.get(parts["column"], ""), value)]
        return found[:limit]

    def _put(self, sys_id: str, row: Row) -> Row | TableError:
        is_resolved = row["state"] in {_RESOLVED, _CLOSED}
        if is_resolved and not (row.get("close_code") and row.get("close_notes")):
            return TableError(403, "Data Policy Exception: Resolution code and notes are mandatory")
        row["active"] = "false" if row["state"] == _CLOSED else "true"
        self.rows[sys_id] = row
        return row

    def _values(self, document: object) -> Row | TableError:
        if not isinstance(document, dict):
            return TableError(400, "The body must be one JSON object")
        for column, value in document.items():
            if column in _SET_BY_ITSELF:
                return TableError(400, f"{column} is set by the instance")
            if column not in self._columns:
                return TableError(400, f"Unknown column {column}")
            if not isinstance(value, str | bool | int | float):
                return TableError(400, f"{column} must be a plain value")
        return {column: _text(value) for column, value in document.items()}


def shown(row: Mapping[str, str], fields: str) -> Row:
    """Return a row with the columns asked for, all of them if none are."""
    names = [name for name in fields.split(",") if name]
    return {name: row.get(name, "") for name in names} if names else dict(row)


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
