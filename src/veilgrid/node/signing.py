"""Keys on disk, signed transcripts and the audit log [node 6]."""

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from veilgrid.errors import Finding, InputError, SetupError
from veilgrid.machine import NodeId
from veilgrid.secret import Secret
from veilgrid.signature import KEY_LENGTH, Signer, Signs, verify

_START: Final = bytes(32)


def fresh_signer() -> Signer:
    """Return a signer with a new key."""
    return Signer(Secret(os.urandom(KEY_LENGTH)))


def load_signer(path: Path) -> Signer:
    """Return the signer whose seed is in the file ``path``."""
    try:
        return Signer(Secret(path.read_bytes()))
    except OSError as error:
        raise SetupError(f"signature key {path} cannot be read ({error.strerror})") from None


def save_signer(signer: Signer, path: Path) -> None:
    """Write a signer's seed to ``path``, readable by its owner only."""
    from veilgrid.node.certificate import write_private

    write_private(path, signer.seed.reveal_to(path))


@dataclass(frozen=True, slots=True)
class Seal:
    """A signed statement: so far ``count`` messages, of which the chained digest is ``head``."""

    count: int
    head: bytes
    signature: bytes


class Transcript:
    """A running digest of what was said, in order, that its keeper signs.

    Two parties that have seen the same messages hold the same head. A party that signs two seals
    with one count and different heads has contradicted itself, and both seals prove it
    (:func:`contradicts`).
    """

    __slots__ = ("_domain", "_signer", "count", "head")

    def __init__(self, domain: str, signer: Signs) -> None:
        self._domain = domain
        self._signer = signer
        self.count = 0
        self.head = hashlib.sha256(b"transcript " + domain.encode()).digest()

    def note(self, sender: NodeId, receiver: NodeId, body: bytes) -> bytes:
        """Chain one message; return the new head."""
        self.head = chained(self.head, sender, receiver, body)
        self.count += 1
        return self.head

    def seal(self) -> Seal:
        """Return the signed head."""
        return Seal(
            self.count,
            self.head,
            self._signer.sign(self._domain, _statement(self.count, self.head)),
        )


def chained(head: bytes, sender: NodeId, receiver: NodeId, body: bytes) -> bytes:
    """Return the head of a transcript after one more message."""
    digest = hashlib.sha256(head)
    for name in (sender, receiver):
        octets = name.encode()
        digest.update(len(octets).to_bytes(2, "big") + octets)
    digest.update(hashlib.sha256(body).digest())
    return digest.digest()


def holds(seal: Seal, verify_key: bytes, domain: str) -> bool:
    """Return whether ``seal`` was signed by that key."""
    return verify(verify_key, domain, _statement(seal.count, seal.head), seal.signature)


def contradicts(one: Seal, other: Seal, verify_key: bytes, domain: str) -> bool:
    """Return whether both seals are genuine and cannot both be true: evidence of a lie."""
    return (
        one.count == other.count
        and one.head != other.head
        and holds(one, verify_key, domain)
        and holds(other, verify_key, domain)
    )


def _statement(count: int, head: bytes) -> bytes:
    return count.to_bytes(8, "big") + head


class AuditUnwritable(SetupError):
    """The audit log could not be written: something happened that leaves no trace."""


class AuditLog:
    """A hash-chained log of what a process did, one JSON object a line.

    Fields are ids, counts, residuals and digests, never values that somebody keeps to himself.

    Parameters
    ----------
    alarm
        Called with a text when a line cannot be written, before :class:`AuditUnwritable` is
        raised: an unnoticed gap is worse than a stopped process.
    now_ns
        Wall clock; passed in for tests.
    """

    def __init__(
        self,
        path: Path,
        alarm: Callable[[str], None],
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self.path = path
        self._alarm = alarm
        self._now_ns = now_ns
        self._head, self._count = read_audit(path) if path.exists() else (_START, 0)
        try:
            self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        except OSError as error:
            self._raise(error)

    def write(self, kind: str, **fields: str | int | float | bool) -> None:
        """Append one line and return when it is durable.

        Raises
        ------
        AuditUnwritable
            The alarm was raised already.
        """
        entry = {"index": self._count, "time_ns": self._now_ns(), "kind": kind, **fields}
        text = json.dumps(entry, sort_keys=True, separators=(",", ":"))
        head = hashlib.sha256(self._head + text.encode()).digest()
        line = f"{head.hex()} {text}\n".encode()
        try:
            written = os.write(self._descriptor, line)
            os.fsync(self._descriptor)
        except OSError as error:
            self._raise(error)
        if written != len(line):
            self._raise(OSError(0, "disk full"))
        self._head, self._count = head, self._count + 1

    def close(self) -> None:
        """Release the file."""
        os.close(self._descriptor)

    def _raise(self, error: OSError) -> None:
        text = f"audit log {self.path} cannot be written ({error.strerror})"
        self._alarm(text)
        raise AuditUnwritable(text + "; free space or mount the disk, then start again") from None


def read_audit(path: Path) -> tuple[bytes, int]:
    """Check the chain of the audit log at ``path``; return its head and how many lines it has.

    Raises
    ------
    InputError
        Lines were changed, dropped or added; the first broken one is named.
    """
    head, count = _START, 0
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        digest, _, text = line.partition(b" ")
        head = hashlib.sha256(head + text).digest()
        if digest.decode("ascii", "replace") != head.hex() or _index(text) != count:
            where = f"{path} line {number}"
            raise InputError([Finding(where, "does not continue the chain of the lines before it")])
        count += 1
    return head, count


def _index(text: bytes) -> int | None:
    try:
        entry: Mapping[str, Any] = json.loads(text)
    except ValueError:
        return None
    index = entry.get("index")
    return index if isinstance(index, int) else None
