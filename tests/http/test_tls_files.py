"""Certificates and keys that cannot be used are refused at once: no prompt, and no wait."""

import os
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
)

from proxy.http.tls import tls_context, verifying_context
from proxy.settings import Tls
from tests.kit.certificates import Authority, Pair, new_key


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return Authority(tmp_path).issue("proxy")


def use(pair: Pair) -> None:
    tls_context(Tls(cert_file=pair.cert_file, key_file=pair.key_file))


def test_a_key_with_a_pass_phrase_is_refused(pair: Pair) -> None:
    """OpenSSL would ask at the terminal, and the process would stand still."""
    encrypted = new_key().private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")
    )
    pair.key_file.write_bytes(encrypted)
    with pytest.raises(OSError, match="the key has a pass phrase; remove it"):
        use(pair)


@pytest.mark.parametrize("name", ["cert_file", "key_file"])
def test_a_fifo_is_refused(pair: Pair, name: str) -> None:
    path: Path = getattr(pair, name)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(OSError, match="it is not a regular file"):
        use(pair)
    with pytest.raises(OSError, match="it is not a regular file"):
        verifying_context(path)


def test_the_same_files_without_a_fault_are_used(pair: Pair, tmp_path: Path) -> None:
    use(pair)
    verifying_context(Authority(tmp_path).file)
