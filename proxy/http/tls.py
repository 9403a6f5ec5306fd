"""TLS contexts: what the listen port offers to callers, and which servers are trusted.

To make one reads files, which blocks. So a reload calls `tls_context` and `read_authorities` in a
thread, and `verifying_context` gives what was read.
"""

import errno
import functools
import ssl
from pathlib import Path

from proxy.settings import Tls
from proxy.settings.files import check_regular_file, in_time

_read: dict[Path, ssl.SSLContext] = {}  # by the path of their authorities, as last read


def tls_context(tls: Tls) -> ssl.SSLContext:
    """Return a context for the listen port, TLS 1.2 or newer.

    Raises OSError (of which ssl.SSLError is one) if the files cannot be used, or if the key has a
    pass phrase, since no person is there to type it.
    """
    for path in (tls.cert_file, tls.key_file):
        check_regular_file(path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    in_time(
        tls.cert_file,
        lambda: context.load_cert_chain(tls.cert_file, tls.key_file, _refuse_pass_phrase),
    )
    context.set_alpn_protocols(["http/1.1"])
    return context


def _refuse_pass_phrase() -> str:
    raise OSError(errno.EACCES, "the key has a pass phrase; remove it")


def verifying_context(ca_file: Path | None) -> ssl.SSLContext:
    """Return a context that verifies, against `ca_file` or the system's authorities.

    The file is read unless `read_authorities` has read it. Raises like that.
    """
    known = None if ca_file is None else _read.get(ca_file)
    return read_authorities(ca_file) if known is None else known


def read_authorities(ca_file: Path | None) -> ssl.SSLContext:
    """Read the authorities, for all contexts to come that verify against them.

    Raises OSError (of which ssl.SSLError is one) if the file cannot be used.

    It ignores the environment: in the `ssl` module's default context SSL_CERT_FILE and SSL_CERT_DIR
    would replace the authorities, and SSLKEYLOGFILE would write the session keys to a file.
    """
    if ca_file is None:
        return _system_context()
    if not ca_file.is_dir():
        check_regular_file(ca_file)
    _read[ca_file] = context = in_time(ca_file, lambda: _context(ca_file))
    return context


@functools.cache
def _system_context() -> ssl.SSLContext:
    """Return the context with OpenSSL's default authorities; reading them is slow.

    Which of file and folder is filled depends on the system.
    """
    paths = ssl.get_default_verify_paths()
    known = (Path(paths.openssl_cafile), Path(paths.openssl_capath))
    return _context(*(path for path in known if path.exists()))


def _context(*authorities: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # verifies certificate and name
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    for path in authorities:
        if path.is_dir():
            context.load_verify_locations(capath=path)
        else:
            context.load_verify_locations(cafile=path)
    return context
