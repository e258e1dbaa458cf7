"""Keys and certificates of a lab's control plane: one authority, whatever it signs, and nothing else."""

import datetime
import ipaddress
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

# Longer than any lab stands, even one that is kept.
VALID = datetime.timedelta(days=30)
# The group whose members Kubernetes lets do everything, before any RBAC rule exists.
MASTERS = "system:masters"


@dataclass(frozen=True)
class Identity:
    """Where a certificate and its private key are (PEM, the key readable by its owner alone)."""

    certificate: Path
    key: Path


class Authority:
    """A certificate authority whose files are in `directory`."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(mode=0o700)
        self._directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "lbless-lab")])
        certificate = (
            self._builder(self._name, self._key)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self.certificate = directory / "ca.crt"
        self.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def server(self, name: str, addresses: Sequence[str], names: Sequence[str]) -> Identity:
        """Sign a server's certificate for IP addresses and DNS names."""
        alternatives = [
            *(x509.IPAddress(ipaddress.ip_address(address)) for address in addresses),
            *(x509.DNSName(alternative) for alternative in names),
        ]
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        extensions = [x509.SubjectAlternativeName(alternatives)]
        return self._sign(name, subject, ExtendedKeyUsageOID.SERVER_AUTH, extensions)

    def client(self, user: str, group: str) -> Identity:
        """Sign the certificate of a Kubernetes user who is in one group."""
        subject = x509.Name(
            [
                x509.NameAttribute(NameOID.ORGANIZATION_NAME, group),
                x509.NameAttribute(NameOID.COMMON_NAME, user),
            ]
        )
        return self._sign(user, subject, ExtendedKeyUsageOID.CLIENT_AUTH, [])

    def key_pair(self, name: str) -> Path:
        """Make a private key, of which Kubernetes derives the public half; return its path."""
        return self._write_key(name, ec.generate_private_key(ec.SECP256R1()))

    def _sign(
        self,
        name: str,
        subject: x509.Name,
        usage: x509.ObjectIdentifier,
        extensions: Sequence[x509.ExtensionType],
    ) -> Identity:
        key = ec.generate_private_key(ec.SECP256R1())
        builder = self._builder(subject, key).add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        for extension in extensions:
            builder = builder.add_extension(extension, critical=False)
        path = self._directory / f"{name.replace(':', '-')}.crt"
        path.write_bytes(builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
        return Identity(path, self._write_key(path.stem, key))

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + VALID)
        )

    def _write_key(self, name: str, key: ec.EllipticCurvePrivateKey) -> Path:
        path = self._directory / f"{name}.key"
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
            stream.write(
                key.private_bytes(
                    serialization.Encoding.PEM,
                    # Kubernetes derives public keys from this form, not from PKCS 8.
                    serialization.PrivateFormat.TraditionalOpenSSL,
                    serialization.NoEncryption(),
                )
            )
        return path
