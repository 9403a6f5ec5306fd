"""Certificates of an authority that a test makes for itself."""

import ipaddress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from proxy.clock import SystemClock
from tests.kit.listener import HOST


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate and its key, in files."""

    cert_file: Path
    key_file: Path

    def replace_by(self, other: "Pair") -> None:
        self.cert_file.write_bytes(other.cert_file.read_bytes())
        self.key_file.write_bytes(other.key_file.read_bytes())


@dataclass(frozen=True, slots=True)
class Authority:
    """Issues certificates; a client that trusts `file` trusts them."""

    folder: Path
    name: str = "test authority"
    key: ec.EllipticCurvePrivateKey = field(default_factory=new_key)

    @property
    def file(self) -> Path:
        """Its own certificate."""
        path = self.folder / f"{self.name.replace(' ', '-')}.pem"
        if not path.exists():
            constraints = x509.BasicConstraints(ca=True, path_length=0)
            usage = x509.KeyUsage(  # RFC 5280 section 4.2.1.3; from 3.13 on Python asks for it
                digital_signature=False,
                content_commitment=False,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=False,
                key_cert_sign=True,
                crl_sign=False,
                encipher_only=False,
                decipher_only=False,
            )
            certificate = (
                self._builder(self.name, self.key, days=1)
                .add_extension(constraints, critical=True)
                .add_extension(usage, critical=True)
                .sign(self.key, hashes.SHA256())
            )
            path.write_bytes(certificate.public_bytes(Encoding.PEM))
        return path

    def issue(
        self, label: str, host: str = HOST, *, names: tuple[str, ...] = (), days: float = 1
    ) -> Pair:
        """Issue one for an address and names; of a negative number of days it has expired."""
        key = new_key()
        address = x509.IPAddress(ipaddress.ip_address(host))
        name = x509.SubjectAlternativeName([address, *map(x509.DNSName, names)])
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        certificate = (
            self._builder(label, key, days=days)
            .add_extension(name, critical=False)
            .add_extension(issuer, critical=False)
            .sign(self.key, hashes.SHA256())
        )
        pair = Pair(self.folder / f"{label}.pem", self.folder / f"{label}.key")
        pair.cert_file.write_bytes(certificate.public_bytes(Encoding.PEM))
        pair.key_file.write_bytes(
            key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        )
        return pair

    def _builder(
        self, subject: str, key: ec.EllipticCurvePrivateKey, *, days: float
    ) -> x509.CertificateBuilder:
        now = datetime.fromtimestamp(SystemClock().wall(), UTC)
        end = now + timedelta(days=days)
        return (
            x509.CertificateBuilder()
            .subject_name(_name(subject))
            .issuer_name(_name(self.name))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(end - timedelta(days=2))
            .not_valid_after(end)
            .add_extension(
                x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False
            )
        )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])
