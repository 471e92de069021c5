"""Attestation by software: for development. It is **not hardware** [attestation 5].

A development root signs what a process says of itself. Whoever holds the root can say anything, so
such evidence shows how a protocol with attested processes works and proves nothing about a machine
[docs/threat-model.md 4].
"""

import hashlib
import hmac
import logging
import os
from pathlib import Path
from typing import Final, Literal, Protocol

import msgspec

from veilgrid.errors import SetupError, invariant
from veilgrid.node.attest.evidence import BINDING_LENGTH, OK, Evidence, Forged, Found
from veilgrid.node.certificate import write_private
from veilgrid.secret import Secret
from veilgrid.signature import KEY_LENGTH, Signer, verify

SealTo = Literal["program", "root"]
NAME: Final = "software (not hardware)"
DOMAIN: Final = "attest/1/software-not-hardware"
_MAGIC: Final = b"veilgrid sealed 1 software-not-hardware\n"
_NONCE_LENGTH: Final = 24
_TAG_LENGTH: Final = 16
_log = logging.getLogger("veilgrid.node.attest")


class Provider(Protocol):
    """What a process asks of the machine that it runs on."""

    hardware: bool
    measurement: bytes

    def quote(self, report_data: bytes, now_s: float) -> Evidence:
        """Return evidence that contains ``report_data``."""
        ...

    def seal(self, secret: Secret[bytes], label: str, to: SealTo = "program") -> bytes:
        """Return octets that only the same program, or this machine, can open."""
        ...

    def unseal(self, sealed: bytes, label: str) -> Secret[bytes]:
        """Return what was sealed under the same label."""
        ...


class SoftwareStatement(msgspec.Struct, frozen=True, kw_only=True):
    """What a process says of itself; nobody vouches for it but a file on a disk."""

    measurement: bytes
    report_data: bytes
    issued_s: float
    root: bytes
    signature: bytes = b""

    @property
    def signed(self) -> bytes:
        """The octets under the signature."""
        return msgspec.msgpack.encode(msgspec.structs.replace(self, signature=b""))


class SoftwareProvider:
    """Quotes and seals with a root key from a file: ``hardware=False``.

    Parameters
    ----------
    root : 32 octets
        The development root.
    measurement
        What the program is said to be; None measures the installed package.
    """

    hardware: bool = False

    __slots__ = ("_has_quoted", "_root", "_signer", "measurement")

    def __init__(self, root: Secret[bytes], measurement: bytes | None = None) -> None:
        self._root = root
        self._signer = Signer(Secret(_derived(root, b"quote")))
        self._has_quoted = False
        self.measurement = measure_package() if measurement is None else measurement
        _log.warning("attestation by %s: hardware=False, for development only", NAME)

    @classmethod
    def create(cls, path: Path) -> "SoftwareProvider":
        """Make a new root in the file ``path``, readable by its owner only."""
        if path.exists():
            raise SetupError(f"{path} exists already; remove it or name another file")
        root = Secret(os.urandom(KEY_LENGTH))
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_private(path, root.reveal_to(path))
        except OSError as error:
            raise SetupError(f"root {path} cannot be written ({error.strerror})") from None
        return cls(root)

    @classmethod
    def load(cls, path: Path, measurement: bytes | None = None) -> "SoftwareProvider":
        """Take the root from the file ``path``."""
        try:
            octets = path.read_bytes()
        except OSError as error:
            raise SetupError(f"root {path} cannot be read ({error.strerror})") from None
        if len(octets) != KEY_LENGTH:
            raise SetupError(f"root {path} has {len(octets)} octets, {KEY_LENGTH} are needed")
        return cls(Secret(octets), measurement)

    def __repr__(self) -> str:
        shown = self.measurement.hex()[:16]
        return f"SoftwareProvider({NAME}, hardware=False, measurement={shown}...)"

    @property
    def root_key(self) -> bytes:
        """Public half of the root: what a policy lists, 32 octets."""
        return self._signer.verify_key

    def quote(self, report_data: bytes, now_s: float) -> Evidence:
        """Return evidence of kind ``software``; see :class:`Provider`."""
        invariant(len(report_data) == BINDING_LENGTH, "evidence is bound to 64 octets")
        said = SoftwareStatement(
            measurement=self.measurement,
            report_data=report_data,
            issued_s=now_s,
            root=self.root_key,
        )
        signature = self._signer.sign(DOMAIN, said.signed)
        signed = msgspec.structs.replace(said, signature=signature)
        level = logging.DEBUG if self._has_quoted else logging.WARNING
        _log.log(level, "quoted by %s: hardware=False", NAME)
        self._has_quoted = True
        return Evidence(kind="software", statement=msgspec.msgpack.encode(signed))

    def seal(self, secret: Secret[bytes], label: str, to: SealTo = "program") -> bytes:
        """Encrypt ``secret`` under a key of this root, and of this program if ``to`` says so.

        What is sealed to the program cannot be opened by its next version; keys that outlive a
        version are sealed to the root.
        """
        from nacl.bindings import crypto_aead_xchacha20poly1305_ietf_encrypt as encrypt

        nonce = os.urandom(_NONCE_LENGTH)
        head = _MAGIC + to[:1].encode()
        octets = secret.reveal_to("sealing")
        return head + nonce + encrypt(octets, head + label.encode(), nonce, self._sealing_key(to))

    def unseal(self, sealed: bytes, label: str) -> Secret[bytes]:
        """Return what :meth:`seal` was given.

        Raises
        ------
        SetupError
            Another root, program or label, or damage: which of them cannot be told.
        """
        from nacl.bindings import crypto_aead_xchacha20poly1305_ietf_decrypt as decrypt
        from nacl.exceptions import CryptoError

        head, rest = sealed[: len(_MAGIC) + 1], sealed[len(_MAGIC) + 1 :]
        kinds: dict[bytes, SealTo] = {b"p": "program", b"r": "root"}
        to = kinds.get(head[len(_MAGIC) :])
        shortest = _NONCE_LENGTH + _TAG_LENGTH
        if not head.startswith(_MAGIC) or to is None or len(rest) < shortest:
            raise SetupError(f"{label} was not sealed by {NAME}")
        nonce, box = rest[:_NONCE_LENGTH], rest[_NONCE_LENGTH:]
        try:
            return Secret(decrypt(box, head + label.encode(), nonce, self._sealing_key(to)))
        except CryptoError:
            raise SetupError(
                f"{label} cannot be unsealed: sealed under another root, by another version of "
                "the program, for another place, or damaged"
            ) from None

    def seal_file(self, path: Path, secret: Secret[bytes]) -> None:
        """Write ``secret`` to ``path``, sealed to the root and bound to the file's name."""
        write_private(path, self.seal(secret, path.name, "root"))

    def unseal_file(self, path: Path) -> Secret[bytes]:
        """Return what :meth:`seal_file` wrote."""
        try:
            return self.unseal(path.read_bytes(), path.name)
        except OSError as error:
            raise SetupError(f"sealed key {path} cannot be read ({error.strerror})") from None

    def password(self, node: str) -> Secret[bytes]:
        """Return what encrypts the TLS key file of ``node``."""
        return Secret(_derived(self._root, b"tls " + node.encode()).hex().encode())

    def _sealing_key(self, to: SealTo) -> bytes:
        return _derived(self._root, b"seal " + (self.measurement if to == "program" else b""))


def is_sealed(path: Path) -> bool:
    """Return whether the file holds something sealed."""
    try:
        with path.open("rb") as file:
            return file.read(len(_MAGIC)) == _MAGIC
    except OSError:
        return False


def inspect(evidence: Evidence, roots: frozenset[bytes]) -> Found:
    """Return what software evidence says, if one of ``roots`` signed it.

    Raises
    ------
    Forged
        It is malformed, signed by nobody known, or its signature does not hold.
    """
    try:
        said = msgspec.msgpack.decode(evidence.statement, type=SoftwareStatement)
    except msgspec.DecodeError:
        raise Forged("the software statement is malformed") from None
    if said.root not in roots:
        raise Forged(f"development root {said.root.hex()[:16]}... is not in the policy")
    if not verify(said.root, DOMAIN, said.signed, said.signature):
        raise Forged("the signature of the development root does not hold")
    return Found(
        kind="software",
        measurement=said.measurement,
        status=OK,
        bound=said.report_data,
        roots=frozenset({said.root.hex()}),
        issued_s=said.issued_s,
    )


def measure_package() -> bytes:
    """Return a digest of the installed package's source files, 48 octets (SHA-384).

    It identifies a version. It protects nothing: who can change the files can change this, too.
    """
    folder = Path(__file__).parents[2]
    digest = hashlib.sha384(b"veilgrid package 1\x00")
    for path in sorted(folder.rglob("*.py")):
        name = path.relative_to(folder).as_posix().encode()
        digest.update(len(name).to_bytes(2, "big") + name)
        digest.update(hashlib.sha384(path.read_bytes()).digest())
    return digest.digest()


def _derived(root: Secret[bytes], purpose: bytes) -> bytes:
    octets = root.reveal_to("key derivation")
    return hmac.new(octets, b"veilgrid software root 1\x00" + purpose, hashlib.sha256).digest()
