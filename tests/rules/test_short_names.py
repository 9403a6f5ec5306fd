"""Short names of clients that are not configured."""

from proxy.rules.digests import account_id
from proxy.rules.short_names import ShortNames, ShownAccounts, is_configured


def test_the_first_clients_get_names_and_keep_them() -> None:
    names = ShortNames(2)
    london, paris, oslo = (account_id(client) for client in ("london", "paris", "oslo"))
    given = [names.name_of(one) for one in (london, paris, oslo, london, oslo)]
    assert given == [f"client:{london[:8]}", f"client:{paris[:8]}", "other", given[0], "other"]


def test_more_names_are_given_when_more_are_allowed_and_none_is_taken_back() -> None:
    names = ShortNames(0)
    assert names.name_of("a" * 32) == "other"
    names.most = 1
    assert names.name_of("a" * 32) == "client:aaaaaaaa"
    names.most = 0
    assert names.name_of("a" * 32) == "client:aaaaaaaa"


def test_configured_names_short_names_and_other_are_shown() -> None:
    shown = ShownAccounts(["london"])
    labels = ("london", "other", ShortNames(1).name_of("a" * 32), "paris", 7)
    assert [label in shown for label in labels] == [True, True, True, False, False]


def test_only_a_configured_name_is_one() -> None:
    labels = ("london", "other", ShortNames(1).name_of("a" * 32), "client")
    assert [is_configured(label) for label in labels] == [True, False, False, True]
