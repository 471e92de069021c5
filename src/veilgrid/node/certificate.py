"""Who is who: certificates that carry a NodeId and a role, and the authority that signs them.

A deployment has one certificate authority. Every process holds an ECDSA P-256 key and a
certificate whose only subject alternative name is ``veilgrid://<role>/<node>`` [node 3]. A
process that is given an ed25519 key for signatures has its public half in a second name,
``veilgrid-key:<hex>``, so that the authority vouches for it as well.
"""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from veilgrid.errors import HandshakeFailed, SetupError
from veilgrid.machine import NodeId
from veilgrid.secret import Secret

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_KEY: Final = re.compile(r"[0-9a-f]{64}")
_URI: Final = "veilgrid://"
_KEY_URI: Final = "veilgrid-key:"
VALID_DAYS: Final = 30
AUTHORITY_DAYS: Final = 3650


@dataclass(frozen=True, slots=True)
class Identity:
    """What a verified certificate says about its holder.

    Attributes
    ----------
    verify_key : 32 octets, or empty
        ed25519 key under which the holder signs.
    """

    node: NodeId
    role: str
    verify_key: bytes = b""


@dataclass(frozen=True, slots=True)
class Credentials:
    """Where a process finds its certificate, its key and the authorities that it trusts.

    ``authority`` may hold several certificates, so that an authority can be replaced while both
    are trusted. ``password`` opens an encrypted key file.
    """

    certificate: Path
    key: Path
    authority: Path
    password: Secret[bytes] | None = None

    def server_context(self) -> ssl.SSLContext:
        """Return TLS settings for accepting: version 1.3 only, peers must prove who they are."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.num_tickets = 0  # Every connection proves its identity afresh.
        return self._filled(context)

    def client_context(self) -> ssl.SSLContext:
        """Return TLS settings for dialling: version 1.3 only; the name is checked by NodeId."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        return self._filled(context)

    def _filled(self, context: ssl.SSLContext) -> ssl.SSLContext:
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.verify_mode = ssl.CERT_REQUIRED
        context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_STRICT
        password = self.password.reveal_to("key file") if self.password else b""
        try:
            context.load_verify_locations(str(self.authority))
            context.load_cert_chain(str(self.certificate), str(self.key), lambda: password)
        except (OSError, ssl.SSLError) as error:
            raise SetupError(
                f"certificate {self.certificate} or its key cannot be used "
                f"({type(error).__name__}); make a new pair with `veilgrid key`"
            ) from None
        return context


def identity_of(certificate: Mapping[str, Any] | None) -> Identity:
    """Return who a peer is from :meth:`ssl.SSLSocket.getpeercert`.

    Raises
    ------
    HandshakeFailed
        The certificate names no node of veilgrid.
    """
    uris = [value for kind, value in (certificate or {}).get("subjectAltName", ()) if kind == "URI"]
    names = [uri.removeprefix(_URI) for uri in uris if uri.startswith(_URI)]
    keys = [uri.removeprefix(_KEY_URI) for uri in uris if uri.startswith(_KEY_URI)]
    role, _, node = names[0].partition("/") if len(names) == 1 else ("", "", "")
    is_keyed = not keys or (len(keys) == 1 and _KEY.fullmatch(keys[0]) is not None)
    if not _NAME.fullmatch(node) or not _NAME.fullmatch(role) or not is_keyed:
        raise HandshakeFailed(
            "the peer's certificate names no node; was it made by `veilgrid key`?"
        )
    verify_key = bytes.fromhex(keys[0]) if keys else b""
    return Identity(NodeId(node), role, verify_key)


def check_name(kind: str, name: str) -> None:
    """Raise :class:`SetupError` unless ``name`` may stand in a certificate."""
    if not _NAME.fullmatch(name):
        raise SetupError(
            f"{kind} {name!r} must be 1 to 64 letters, digits, '.', '_' or '-', "
            "starting with a letter or digit"
        )


class Authority:
    """A certificate authority for development and for small deployments.

    Use :meth:`create` once and :meth:`load` afterwards.
    """

    def __init__(self, key: EllipticCurvePrivateKey, certificate: x509.Certificate) -> None:
        self._key = Secret(key)
        self._certificate = certificate

    @classmethod
    def create(cls, name: str = "veilgrid development authority") -> Authority:
        """Return a new authority with a fresh key."""
        from cryptography import x509
        from cryptography.hazmat.primitives.asymmetric import ec

        key = ec.generate_private_key(ec.SECP256R1())
        subject = _subject(name)
        builder = _builder(subject, subject, key.public_key(), AUTHORITY_DAYS)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
        builder = builder.add_extension(_key_usage(signs_certificates=True), True)
        identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        builder = builder.add_extension(identifier, False)
        return cls(key, _signed(builder, key))

    @classmethod
    def load(cls, folder: Path) -> Authority:
        """Return the authority that :meth:`save` wrote to ``folder``."""
        from cryptography import x509
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ec

        try:
            key = serialization.load_pem_private_key((folder / "ca.key").read_bytes(), None)
            certificate = x509.load_pem_x509_certificate((folder / "ca.pem").read_bytes())
        except (OSError, ValueError, TypeError) as error:
            raise SetupError(f"no usable authority in {folder} ({type(error).__name__})") from None
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise SetupError(f"{folder / 'ca.key'} is not an ECDSA key")
        return cls(key, certificate)

    def save(self, folder: Path) -> None:
        """Write ``ca.pem`` and ``ca.key`` to ``folder``; the key is readable by its owner only."""
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_private(folder / "ca.key", _key_octets(self._key.reveal_to("key file"), None))
        (folder / "ca.pem").write_bytes(self.certificate_pem)

    @property
    def certificate_pem(self) -> bytes:
        """The authority's certificate, to be trusted by every process."""
        from cryptography.hazmat.primitives import serialization

        return self._certificate.public_bytes(serialization.Encoding.PEM)

    def issue(
        self,
        folder: Path,
        node: str,
        role: str,
        *,
        verify_key: bytes = b"",
        valid_days: float = VALID_DAYS,
        password: Secret[bytes] | None = None,
        trusted: bytes = b"",
    ) -> Credentials:
        """Make a key and a certificate for ``node`` and write them to ``folder``.

        Issuing again replaces the files in one step each; a running process takes them up with
        :meth:`veilgrid.node.transport.Endpoint.rotate`.

        Parameters
        ----------
        folder
            Receives ``NODE.pem``, ``NODE.key`` and ``NODE.ca.pem``.
        node, role
            What the certificate says.
        verify_key : 32 octets, or empty
            Public ed25519 key to vouch for.
        valid_days
            From now; five minutes of clock difference are allowed for.
        password
            Encrypts the key file at rest.
        trusted : PEM
            Authorities that the holder trusts; empty for this one alone.
        """
        from cryptography import x509
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ec

        check_name("node", node)
        check_name("role", role)
        key = ec.generate_private_key(ec.SECP256R1())
        names = [x509.UniformResourceIdentifier(f"{_URI}{role}/{node}")]
        if verify_key:
            names.append(x509.UniformResourceIdentifier(_KEY_URI + verify_key.hex()))
        builder = _builder(_subject(node), self._certificate.subject, key.public_key(), valid_days)
        authority_key = self._key.reveal_to("signing")
        for extension, is_critical in (
            (x509.BasicConstraints(ca=False, path_length=None), True),
            (_key_usage(signs_certificates=False), True),
            (x509.ExtendedKeyUsage(_both_usages()), False),
            (x509.SubjectAlternativeName(names), False),
            (x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False),
            (
                x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()),
                False,
            ),
        ):
            builder = builder.add_extension(extension, is_critical)
        certificate = _signed(builder, authority_key)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        made = Credentials(
            folder / f"{node}.pem", folder / f"{node}.key", folder / f"{node}.ca.pem", password
        )
        write_private(made.key, _key_octets(key, password))
        _replace(made.certificate, certificate.public_bytes(serialization.Encoding.PEM), 0o644)
        write_public(made.authority, trusted or self.certificate_pem)
        return made


def write_private(path: Path, octets: bytes) -> None:
    """Replace ``path`` by a file that only its owner can read."""
    _replace(path, octets, 0o600)


def write_public(path: Path, octets: bytes) -> None:
    """Replace ``path`` in one step by a file that anybody can read."""
    _replace(path, octets, 0o644)


def _replace(path: Path, octets: bytes, mode: int) -> None:
    fresh = path.with_name(path.name + ".new")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(octets)
    fresh.replace(path)


def _subject(name: str) -> x509.Name:
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _builder(
    subject: x509.Name, issuer: x509.Name, public_key: Any, valid_days: float
) -> x509.CertificateBuilder:
    import datetime

    from cryptography import x509

    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(days=valid_days))
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    from cryptography import x509

    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _both_usages() -> list[x509.ObjectIdentifier]:
    from cryptography.x509.oid import ExtendedKeyUsageOID

    return [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]


def _signed(builder: x509.CertificateBuilder, key: EllipticCurvePrivateKey) -> x509.Certificate:
    from cryptography.hazmat.primitives import hashes

    return builder.sign(key, hashes.SHA256())


def _key_octets(key: EllipticCurvePrivateKey, password: Secret[bytes] | None) -> bytes:
    from cryptography.hazmat.primitives import serialization

    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if password is not None:
        encryption = serialization.BestAvailableEncryption(password.reveal_to("key file"))
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption
    )
