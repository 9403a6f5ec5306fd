"""The strict incident table refuses what an instance would lose without a word."""

import pytest

from proxy.simulator.incidents import IncidentTable, TableError, shown

ROW = {"short_description": "s", "correlation_id": "a:1", "u_flag": True}
CLOSE = {"state": "7", "close_code": "c", "close_notes": "n"}


def table() -> IncidentTable:
    return IncidentTable({"u_flag"})


def test_a_row_gets_its_number_and_comes_back_as_text() -> None:
    row = table().insert(ROW)
    assert isinstance(row, dict)
    assert (row["number"], row["active"], row["u_flag"]) == ("INC0000001", "true", "true")


@pytest.mark.parametrize(
    "document",
    [
        None,
        [ROW],
        {**ROW, "number": "INC1"},
        {**ROW, "sys_id": "1"},
        {**ROW, "u_other": "x"},
        {**ROW, "description": {"a": 1}},
        {**ROW, "description": ["a"]},
        {**ROW, "description": None},
    ],
    ids=range(8),
)
def test_what_is_no_flat_row_of_known_columns_is_refused(document: object) -> None:
    rows = table()
    refusal = rows.insert(document)
    assert isinstance(refusal, TableError)
    assert refusal.status == 400
    assert rows.rows == {}


def test_a_row_is_closed_with_code_and_notes_only() -> None:
    rows = table()
    rows.insert(ROW)
    (sys_id,) = rows.rows
    refusal = rows.change(sys_id, {"state": "7"})
    assert isinstance(refusal, TableError)
    assert (refusal.status, rows.rows[sys_id]["active"]) == (403, "true")
    rows.change(sys_id, CLOSE)
    assert rows.rows[sys_id]["active"] == "false"


def test_a_row_that_is_not_there_is_404() -> None:
    refusal = table().change("1", CLOSE)
    assert isinstance(refusal, TableError)
    assert refusal.status == 404


@pytest.mark.parametrize(
    ("query", "count"),
    [
        ("", 2),
        ("correlation_id=a:1", 1),
        ("correlation_id=a:1^state!=1", 0),
        ("correlation_idSTARTSWITHa:", 2),
        ("active=true^correlation_idSTARTSWITHa:2", 1),
        ("u_flag=true", 1),
    ],
)
def test_an_encoded_query_finds_the_rows_that_meet_every_condition(query: str, count: int) -> None:
    rows = table()
    rows.insert(ROW)
    rows.insert({"correlation_id": "a:2"})
    found = rows.find(query, limit=10)
    assert isinstance(found, list)
    assert len(found) == count


@pytest.mark.parametrize("query", ["u_other=1", "state", "state>1"])
def test_a_query_it_does_not_know_is_refused(query: str) -> None:
    assert isinstance(table().find(query, limit=1), TableError)


def test_the_columns_asked_for_are_shown() -> None:
    assert shown({"a": "1", "b": "2"}, "b,c") == {"b": "2", "c": ""}
    assert shown({"a": "1"}, "") == {"a": "1"}
