"""A managed account's client id and secret; a secret in a file is read again when it is needed.

A file is read in another thread, so that a file system that does not answer stops only what needs
the secret; one read of a secret runs at a time.

The secret never appears in a text: not in `repr`, not in an error.
"""

import asyncio
import hashlib
import hmac
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from proxy.rules.logins import has_control
from proxy.settings import Account
from proxy.settings.files import aside, read_small_file


class SecretUnreadableError(Exception):
    """The secret's file cannot be read, or is empty; the message names neither its content."""


class BadSecretError(SecretUnreadableError):
    """The secret's file does not hold a valid secret."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """An account's client id and secret.

    `read` returns the secret or raises `SecretUnreadableError`; it blocks if `is_file`.
    """

    client_id: str
    read: Callable[[], str] = field(repr=False)
    is_file: bool = False
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock, repr=False, compare=False)

    @classmethod
    def of(cls, account: Account) -> "Credentials":
        """Return the credentials of a managed account."""
        secret, file = account.client_secret, account.client_secret_file
        if secret is not None:
            value = secret.get_secret_value()
            return cls(account.client_id, lambda: value)
        assert file is not None  # noqa: S101 -- a managed account has one of the two
        return cls(account.client_id, lambda: _read(file), is_file=True)

    async def read_secret(self) -> str:
        """Return the secret; raises `SecretUnreadableError`."""
        if not self.is_file:
            return self.read()
        async with self._lock:
            return await aside(self.read)

    async def match(self, *readings: str) -> bool:
        """True if one of the readings is the secret; raises `SecretUnreadableError`.

        Each reading is compared in constant time, so the duration reveals nothing.
        """
        secret = (await self.read_secret()).encode()
        matches = [hmac.compare_digest(one.encode("utf-8", "replace"), secret) for one in readings]
        return True in matches

    async def fingerprint(self) -> bytes | None:
        """Return a hash that changes when the secret does; None if it cannot be read."""
        try:
            return fingerprint_of(await self.read_secret())
        except SecretUnreadableError:
            return None


def fingerprint_of(secret: str) -> bytes:
    """Return the hash by which a secret is known to be another one."""
    return hashlib.sha256(secret.encode()).digest()


def _read(file: Path) -> str:
    try:
        secret = read_small_file(file).rstrip(" \r\n").lstrip(" ")
    except OSError as error:
        raise SecretUnreadableError(f"the secret file cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise SecretUnreadableError("the secret file is not text in UTF-8") from None
    if not secret:
        raise SecretUnreadableError("the secret file is empty")
    if has_control(secret):
        raise BadSecretError("the secret file holds a control character")
    return secret
