"""What stands for a client id or a token in a key: fixed, and never the thing itself."""

from proxy.rules.digests import account_id, hash_token, store_key


def test_account_is_known_by_a_hash_of_its_client_id() -> None:
    assert account_id("london") == "6089854c94ca5454b76be6752c562901"


def test_uuid_is_one_account_in_either_case_and_other_ids_are_two() -> None:
    small = "0f5c1c2e-7d3b-4f9a-8a53-9b1f4a6d2c10"
    assert account_id(small.upper()) == account_id(small)
    assert account_id(small) != account_id(small[:-1] + "1")
    assert account_id("London") != account_id("london")


def test_lone_surrogate_is_a_client_id_too() -> None:
    assert account_id("\ud800") != account_id("\ud801")


def test_token_is_kept_as_its_sha256() -> None:
    assert hash_token("abc").hex() == (
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )


def test_key_of_a_token_never_meets_that_of_an_account() -> None:
    assert store_key("0a" * 16) == "export-proxy:2:{" + "0a" * 16 + "}"
    assert store_key(b"\x0a" * 16).startswith("export-proxy:2:{token-")
