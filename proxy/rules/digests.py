"""The hashes that stand for accounts and tokens, so that neither is stored as plain text."""

import hashlib
import re
from typing import Final

# RFC 9562 section 4: a UUID is one in either case; other ids are what they are, letter by letter.
_UUID: Final = re.compile(r"[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}")

# The number is the version of what is kept under the keys: replicas that share a pace share it.
STORE_PREFIX: Final = "export-proxy:2:"


def account_id(client_id: str) -> str:
    """Return the id of an account: a hash, so that it does not reveal the client id."""
    is_uuid = _UUID.fullmatch(client_id) is not None
    return digest(client_id.lower() if is_uuid else client_id)


def digest(text: str) -> str:
    """Return half of the SHA-256 of a text, in hexadecimal."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def hash_token(token: str) -> bytes:
    """Return the SHA-256 of a token, which is stored instead of the token."""
    return hashlib.sha256(token.encode()).digest()


def store_key(key: str | bytes) -> str:
    """Return the key of an account's state in a shared store, tagged so that a cluster can hold it.

    `key` is an account id, or the hash of an unidentified token. Such a hash is hashed once more,
    so that it never meets an account id.
    """
    name = key if isinstance(key, str) else "token-" + hashlib.sha256(key).hexdigest()[:32]
    return f"{STORE_PREFIX}{{{name}}}"
