"""TLS contexts: what the listen port offers to callers."""

import ssl

from proxy.settings import Tls


def tls_context(tls: Tls) -> ssl.SSLContext:
    """Return a context for the listen port, TLS 1.2 or newer.

    Raises OSError (of which ssl.SSLError is one) if the files cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(tls.cert_file, tls.key_file)
    context.set_alpn_protocols(["http/1.1"])
    return context
