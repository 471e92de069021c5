"""Signatures over canonical, domain-separated octets [node 6].

What is signed is never a bare message. It is

    "veilgrid signature 1" 0x00 | length of domain u16 | domain | SHA-256 of the payload

so that a signature made in one protocol says nothing in another. ``domain`` names the protocol,
its version and the kind of statement, for example ``ledger/1/prepare``.
"""

import hashlib
from typing import Final, Protocol

from veilgrid.errors import SetupError, invariant
from veilgrid.secret import Secret

_PREFIX: Final = b"veilgrid signature 1\x00"
SIGNATURE_LENGTH: Final = 64
KEY_LENGTH: Final = 32


class Signs(Protocol):
    """The capability to sign, handed to machines like :class:`~veilgrid.secret.Randomness`."""

    verify_key: bytes

    def sign(self, domain: str, payload: bytes) -> bytes:
        """Return the signature of ``payload`` in ``domain``."""
        ...


def canonical(domain: str, payload: bytes) -> bytes:
    """Return the octets that are signed for ``payload`` in ``domain``."""
    name = domain.encode()
    invariant(0 < len(name) < 256, "a domain has between 1 and 255 octets")
    return _PREFIX + len(name).to_bytes(2, "big") + name + hashlib.sha256(payload).digest()


class Signer:
    """An ed25519 key that signs.

    Parameters
    ----------
    seed : 32 octets
        The secret half.
    """

    __slots__ = ("_key", "verify_key")

    def __init__(self, seed: Secret[bytes]) -> None:
        from nacl.signing import SigningKey

        octets = seed.reveal_to("signature key")
        if len(octets) != KEY_LENGTH:
            raise SetupError(f"a signature key has {KEY_LENGTH} octets, found {len(octets)}")
        key = SigningKey(octets)
        self._key = Secret(key)
        self.verify_key: bytes = bytes(key.verify_key)

    @property
    def seed(self) -> Secret[bytes]:
        """The secret half, to be stored."""
        return Secret(self._key.reveal_to("key file").encode())

    def sign(self, domain: str, payload: bytes) -> bytes:
        """Return the signature of ``payload`` in ``domain``, 64 octets."""
        return self._key.reveal_to("signing").sign(canonical(domain, payload)).signature


def verify(verify_key: bytes, domain: str, payload: bytes, signature: bytes) -> bool:
    """Return whether ``signature`` was made over ``payload`` in ``domain`` by that key."""
    from nacl.bindings import crypto_sign_open
    from nacl.exceptions import CryptoError

    if len(verify_key) != KEY_LENGTH or len(signature) != SIGNATURE_LENGTH:
        return False
    try:
        crypto_sign_open(signature + canonical(domain, payload), verify_key)
    except (CryptoError, ValueError):
        return False
    return True
