"""The checks of a configuration before the proxy applies it, at the start and at a reload.

A reload is all or nothing: if the new file asks for what only a restart can change, or names a file
that cannot be used, the proxy keeps the old configuration.
"""

import ipaddress
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from proxy.http.tls import tls_context, verifying_context
from proxy.incidents.credentials import (
    BadCredentials,
    CredentialsUnreadable,
    read_credentials,
)
from proxy.service.doubts import loops
from proxy.settings import ConfigError, Settings
from proxy.settings.files import read_small_file
from proxy.tokens.credentials import BadSecretError, Credentials, SecretUnreadableError

_IPV6: Final = 6


def check_start(settings: Settings) -> None:
    """Raise ConfigError if a file that the settings name cannot be used."""
    _refuse([*_unusable(settings)])


def check_whole(settings: Settings) -> None:
    """Raise ConfigError if a proxy could not start, or would be of no use."""
    _refuse([*_unusable(settings), *loops(settings, is_here)])


def check_reload(old: Settings, new: Settings) -> None:
    """Raise ConfigError if a running proxy cannot obey the new settings."""
    _refuse([*_unreloadable(old, new), *_unusable(new)])


def _refuse(problems: list[str]) -> None:
    if problems:
        raise ConfigError(tuple(problems))


def _unreloadable(old: Settings, new: Settings) -> Iterator[str]:
    """Yield a line for each change that only a restart can make."""
    changes = {
        "listen.host": old.listen.host != new.listen.host,
        "listen.port": old.listen.port != new.listen.port,
        "listen.tls": (old.listen.tls is None) != (new.listen.tls is None),
        "admin": old.admin != new.admin,
        "store.url": old.store.url != new.store.url,
    }
    for key, is_changed in changes.items():
        if is_changed:
            yield f"{key}: cannot be changed by a reload; restart instead"


def _unusable(settings: Settings) -> Iterator[str]:
    """Yield a line for each certificate or key that cannot be used."""
    try:
        if settings.listen.tls is not None:
            tls_context(settings.listen.tls)
    except OSError as error:
        yield f"listen.tls: cannot be used: {_reason(error)}"
    try:
        verifying_context(settings.upstream.ca_file)
    except OSError as error:
        yield f"upstream.ca_file: cannot be used: {_reason(error)}"
    yield from _bad_secrets(settings)


def _bad_secrets(settings: Settings) -> Iterator[str]:
    """Yield a line for each secret file whose content cannot be a secret.

    A file that cannot be read may still come; until then its account has no token.
    """
    for index, account in enumerate(settings.accounts):
        if account.client_secret_file is not None:
            try:
                Credentials.of(account).read_secret()
            except BadSecretError as error:
                yield f"accounts[{index}].client_secret_file: {error}"
            except SecretUnreadableError:
                continue
    yield from _bad_desk_credentials(settings)


def missing_files(settings: Settings) -> Iterator[str]:
    """Yield a line for each file of a secret that cannot be read; it may still come."""
    for index, account in enumerate(settings.accounts):
        if account.client_secret_file is not None:
            yield from _missing(f"accounts[{index}].client_secret_file", account.client_secret_file)
    if settings.incidents is not None:
        yield from _missing("incidents.credentials_file", settings.incidents.credentials_file)
    if settings.admin.token_file is not None:
        yield from _missing("admin.token_file", settings.admin.token_file)


def _missing(key: str, path: Path) -> Iterator[str]:
    try:
        read_small_file(path)
    except OSError as error:
        yield f"{key}: cannot be read: {error.strerror}"
    except UnicodeDecodeError:
        yield f"{key}: is not text in UTF-8"


def is_here(host: str) -> bool:
    """True if that is an address or the name of this machine, found without a DNS query."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == socket.gethostname().lower()
    family = socket.AF_INET6 if address.version == _IPV6 else socket.AF_INET
    with socket.socket(family) as probe:
        try:
            probe.bind((host, 0))
        except OSError:
            return False
    return True


def _bad_desk_credentials(settings: Settings) -> Iterator[str]:
    """Yield a line if the incidents' credentials file is readable but not valid."""
    wanted = settings.incidents
    if wanted is not None:
        try:
            read_credentials(wanted.credentials_file, wanted.format)
        except BadCredentials as error:
            yield f"incidents.credentials_file: {error}"
        except CredentialsUnreadable:
            return  # it may still come; until then nobody is told


def _reason(error: OSError) -> str:
    """Return why a file cannot be used; OpenSSL's errors have a code, and not always a phrase."""
    if isinstance(error, ssl.SSLError):
        return (error.reason or "not a certificate or key in PEM form").replace("_", " ").lower()
    return error.strerror or "it cannot be read"
