"""What a route takes decides whose pace it goes on with, and not its name."""

from collections.abc import Mapping

import pytest

from proxy.rules.succession import Taken, lease_name, predecessors, taken_by

METHODS = ("GET", "POST")


def taken(*paths: str, methods: tuple[str, ...] = ("*",)) -> Taken:
    return taken_by(paths, methods, METHODS)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ({"a": taken("/x")}, {"a": taken("/x")}, {"a": ()}),
        ({"a": taken("/x")}, {"b": taken("/x")}, {"b": ("a",)}),
        ({"a": taken("/x", "/y")}, {"a": taken("/x"), "b": taken("/y")}, {"a": (), "b": ("a",)}),
        ({"a": taken("/x"), "b": taken("/y")}, {"a": taken("/x", "/y")}, {"a": ("b",)}),
        ({"a": taken("/x")}, {"b": taken("/z")}, {"b": ()}),
        ({"a": taken("/x")}, {"b": taken("/x", methods=("POST",))}, {"b": ("a",)}),
        ({"a": taken("/x", methods=("GET",))}, {"b": taken("/x", methods=("POST",))}, {"b": ()}),
        ({}, {"a": taken("/x")}, {"a": ()}),
        ({"a": taken("/x"), "b": taken("/x")}, {"a": taken("/x")}, {"a": ()}),
    ],
)
def test_queues_that_took_a_path_before_are_predecessors(
    old: Mapping[str, Taken], new: Mapping[str, Taken], expected: Mapping[str, tuple[str, ...]]
) -> None:
    assert predecessors(old, new) == expected


def test_leases_are_named_by_what_is_taken_in_whatever_order() -> None:
    assert lease_name(taken("/x", "/y")) == lease_name(taken("/y", "/x"))
    assert lease_name(taken("/x")) == lease_name(taken("/x", methods=("POST", "GET")))
    assert lease_name(taken("/x")) != lease_name(taken("/y"))
    assert lease_name(taken("/x")) != lease_name(taken("/x", methods=("POST",)))
