"""TLS contexts: what the listen port offers to callers, and which servers are trusted."""

import errno
import functools
import ssl
from pathlib import Path

from proxy.settings import Tls
from proxy.settings.files import check_regular_file


def tls_context(tls: Tls) -> ssl.SSLContext:
    """Return a context for the listen port, TLS 1.2 or newer.

    Raises OSError (of which ssl.SSLError is one) if the files cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    load_certificate(context, tls)
    context.set_alpn_protocols(["http/1.1"])
    return context


def load_certificate(context: ssl.SSLContext, tls: Tls) -> None:
    """Present this certificate from the next handshake on.

    Raises OSError if the files cannot be used, or if the key has a pass phrase, since no person is
    there to type it.
    """
    for path in (tls.cert_file, tls.key_file):
        check_regular_file(path)
    context.load_cert_chain(tls.cert_file, tls.key_file, _refuse_pass_phrase)


def _refuse_pass_phrase() -> str:
    raise OSError(errno.EACCES, "the key has a pass phrase; remove it")


def verifying_context(ca_file: Path | None) -> ssl.SSLContext:
    """Return a context that verifies, against `ca_file` or the system's authorities.

    Raises OSError (of which ssl.SSLError is one) if the file cannot be used.

    It ignores the environment: in the `ssl` module's default context SSL_CERT_FILE and SSL_CERT_DIR
    would replace the authorities, and SSLKEYLOGFILE would write the session keys to a file.
    """
    if ca_file is None:
        return _system_context()
    if not ca_file.is_dir():
        check_regular_file(ca_file)
    return _context(ca_file)


@functools.cache
def _system_context() -> ssl.SSLContext:
    """Return the context of the authorities OpenSSL was built to find; reading them takes a while.

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
