"""The checks of a configuration before the proxy applies it, at the start and at a reload.

A reload is all or nothing: if the new file asks for what only a restart can change, or names a file
that cannot be used, the proxy keeps the old configuration.

To read files may take seconds. So all that a configuration names is read first, into a value, by a
reload in a thread of its own; to obey it then reads nothing, and happens between two requests.
"""

import ipaddress
import socket
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from proxy.http.tls import read_authorities, tls_context
from proxy.incidents.credentials import (
    BadCredentials,
    CredentialsUnreadable,
    read_now,
)
from proxy.service.doubts import loops
from proxy.settings import ConfigError, Settings
from proxy.settings.files import read_small_file
from proxy.tokens.credentials import (
    BadSecretError,
    Credentials,
    SecretUnreadableError,
    fingerprint_of,
)

_IPV6: Final = 6


@dataclass(frozen=True, slots=True)
class Files:
    """What the files hold that some settings name.

    `problems` has a line for each that cannot be used; `fingerprints` are those of the accounts'
    secrets by client id, None for one that cannot be read yet.
    """

    problems: tuple[str, ...]
    tls: ssl.SSLContext | None
    fingerprints: Mapping[str, bytes | None]


def read_files(settings: Settings) -> Files:
    """Read the files that the settings name; this blocks."""
    problems: list[str] = []
    tls = None
    try:
        tls = None if settings.listen.tls is None else tls_context(settings.listen.tls)
    except OSError as error:
        problems.append(f"listen.tls: cannot be used: {_reason(error)}")
    try:
        read_authorities(settings.upstream.ca_file)
    except OSError as error:
        problems.append(f"upstream.ca_file: cannot be used: {_reason(error)}")
    fingerprints = _read_secrets(settings, problems)
    problems += _bad_desk_credentials(settings)
    return Files(tuple(problems), tls, fingerprints)


def check_start(files: Files) -> None:
    """Raise ConfigError if a file that the settings name cannot be used."""
    _refuse(files.problems)


def check_whole(settings: Settings) -> None:
    """Raise ConfigError if a proxy could not start, or would be of no use."""
    _refuse((*read_files(settings).problems, *loops(settings, is_here)))


def check_reload(old: Settings, new: Settings, files: Files) -> None:
    """Raise ConfigError if a running proxy cannot obey the new settings."""
    _refuse((*_unreloadable(old, new), *files.problems))


def _refuse(problems: tuple[str, ...]) -> None:
    if problems:
        raise ConfigError(problems)


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


def _read_secrets(settings: Settings, problems: list[str]) -> dict[str, bytes | None]:
    """Return the secrets' fingerprints by client id; add a line for each file that holds none.

    A file that cannot be read may still come; until then its account has no token.
    """
    fingerprints: dict[str, bytes | None] = {}
    for index, account in enumerate(settings.accounts):
        if account.is_managed:
            fingerprints[account.client_id] = None
            try:
                fingerprints[account.client_id] = fingerprint_of(Credentials.of(account).read())
            except BadSecretError as error:
                problems.append(f"accounts[{index}].client_secret_file: {error}")
            except SecretUnreadableError:
                continue
    return fingerprints


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
            read_now(wanted.credentials_file, wanted.format)
        except BadCredentials as error:
            yield f"incidents.credentials_file: {error}"
        except CredentialsUnreadable:
            return  # it may still come; until then nothing is reported


def _reason(error: OSError) -> str:
    """Return why a file cannot be used; OpenSSL's errors have a code, and not always a phrase."""
    if isinstance(error, ssl.SSLError):
        return (error.reason or "not a certificate or key in PEM form").replace("_", " ").lower()
    return error.strerror or "it cannot be read"
