"""The journal: what a process must still know after it was killed [node 5].

One file, appended to in blocks. A block holds the records of one or more steps and is synced as a
whole before any later effect of these steps:

    file    magic 8 | salt 16 | key check 16
    block   marker 4 | sequence u64 | length u64 | header check 8 | body check 16 | body

The checks are BLAKE2b under the file's random salt; the body check also covers the check of the
block before it, so blocks can be neither exchanged nor dropped. The next block is begun only when
the one before is durable. Therefore a damaged block with no later block is a torn tail and is cut;
a damaged block with a later one was durable once, and the journal is corrupt.
"""

import fcntl
import hashlib
import os
import secrets
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import msgspec

from veilgrid.errors import JournalCorrupt, SetupError, invariant
from veilgrid.node.wire import Codec, MalformedFrame
from veilgrid.secret import Secret

_MAGIC: Final = b"VGJRNL1\n"
_FILE_HEADER: Final = len(_MAGIC) + 32
_MARKER: Final = b"\xd3VGb"
_BLOCK: Final = struct.Struct(">4sQQ8s16s")
_CHECKED: Final = struct.Struct(">4sQQ")
_NONCE: Final = 24
KEY_LENGTH: Final = 32

_bodies = msgspec.msgpack.Decoder(list[bytes])


class Journal:
    """An append-only journal; open it with :meth:`open`.

    Attributes
    ----------
    records
        What was durable when the journal was opened, oldest first.
    cut : octets
        Length of the torn tail that was removed on opening.
    """

    def __init__(self, path: Path, codec: Codec, key: Secret[bytes] | None) -> None:
        self.path = path
        self.records: tuple[Any, ...] = ()
        self.cut = 0
        self._codec = codec
        self._key = key
        self._salt = b""
        self._sequence = 0
        self._previous = bytes(16)
        self._waiting: list[bytes] = []
        self._is_broken = False
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)

    @classmethod
    def open(cls, path: Path, codec: Codec, key: Secret[bytes] | None = None) -> "Journal":
        """Open or create the journal at ``path`` and read what it holds.

        Parameters
        ----------
        path
            Its folder is made if need be; the file is readable by its owner only.
        codec
            The records' types.
        key : 32 octets
            Encrypts every block (XChaCha20-Poly1305); without it records are readable on disk.

        Raises
        ------
        JournalCorrupt
            A block that was durable once is damaged.
        SetupError
            Another process uses the journal, it cannot be read, or the key is not its key.
        """
        if key is not None and len(key.reveal_to("length check")) != KEY_LENGTH:
            raise SetupError(f"the key of journal {path} must have {KEY_LENGTH} octets")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            journal = cls(path, codec, key)
        except OSError as error:
            raise SetupError(f"journal {path} cannot be opened ({error.strerror})") from None
        try:
            try:
                fcntl.flock(journal._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise SetupError(f"journal {path} is in use by another process") from None
            journal._read()
        except BaseException:
            os.close(journal._descriptor)
            raise
        return journal

    def append(self, record: Any) -> None:
        """Add ``record`` to the block that is written next."""
        self._waiting.append(self._codec.encode(record))

    @property
    def is_dirty(self) -> bool:
        """Records wait for :meth:`sync`."""
        return bool(self._waiting)

    def take(self) -> list[bytes]:
        """Return what waits, for :meth:`write` on another thread."""
        bodies, self._waiting = self._waiting, []
        return bodies

    def write(self, bodies: list[bytes]) -> None:
        """Write one block and return when it is durable; never two calls at a time.

        Raises
        ------
        SetupError
            The disk refused. The journal takes nothing more, because what the file now holds is
            unknown; reopen it.
        """
        invariant(not self._is_broken, "a journal that failed once is reopened before use")
        if not bodies:
            return
        block, check = self._block(bodies)
        try:
            _write_all(self._descriptor, block)
            os.fsync(self._descriptor)
        except OSError as error:
            self._is_broken = True
            raise SetupError(f"journal {self.path} cannot be written ({error.strerror})") from None
        self._sequence += 1
        self._previous = check

    def sync(self) -> None:
        """Make durable what waits."""
        self.write(self.take())

    def compact(self, records: Iterable[Any]) -> None:
        """Replace the whole journal by ``records`` in one atomic step (minimum retention)."""
        invariant(not self._waiting, "nothing waits when a journal is compacted")
        fresh_path = self.path.with_name(self.path.name + ".new")
        fresh_path.unlink(missing_ok=True)
        fresh = Journal.open(fresh_path, self._codec, self._key)
        for record in records:
            fresh.append(record)
        fresh.sync()
        fresh_path.replace(self.path)
        _sync_folder(self.path.parent)
        os.close(self._descriptor)
        self._descriptor, self._salt = fresh._descriptor, fresh._salt
        self._sequence, self._previous = fresh._sequence, fresh._previous

    def close(self) -> None:
        """Make everything durable and release the file."""
        if not self._is_broken:
            self.sync()
        os.close(self._descriptor)

    # -- reading ---------------------------------------------------------------------------------

    def _read(self) -> None:
        octets = self.path.read_bytes()
        if len(octets) < _FILE_HEADER:
            self._begin()
            self.cut = len(octets)
            return
        if not octets.startswith(_MAGIC):
            raise SetupError(f"{self.path} is not a journal of this version")
        self._salt = octets[len(_MAGIC) : len(_MAGIC) + 16]
        if octets[len(_MAGIC) + 16 : _FILE_HEADER] != self._key_check():
            raise SetupError(
                f"the key given for journal {self.path} is not the one it was made with"
            )
        offset, records = _FILE_HEADER, []
        while offset < len(octets):
            body, check, expected = self._cut_block(octets, offset)
            if body is None:
                self._judge(octets, offset, expected, check)
                os.ftruncate(self._descriptor, offset)
                os.fsync(self._descriptor)
                self.cut = len(octets) - offset
                break
            records += self._open(body, offset, check)
            offset += _BLOCK.size + len(body)
            self._previous = check
            self._sequence += 1
        self.records = tuple(records)

    def _begin(self) -> None:
        self._salt = secrets.token_bytes(16)
        os.ftruncate(self._descriptor, 0)
        _write_all(self._descriptor, _MAGIC + self._salt + self._key_check())
        os.fsync(self._descriptor)
        _sync_folder(self.path.parent)

    def _cut_block(self, octets: bytes, offset: int) -> tuple[bytes | None, bytes, bytes]:
        """Return (body or None if damaged, check found, check expected)."""
        header = self._header_at(octets, offset)
        if header is None or header[0] != self._sequence:
            return None, b"", b""
        _, length, check = header
        body = octets[offset + _BLOCK.size : offset + _BLOCK.size + length]
        expected = self._check(self._sequence, body)
        if len(body) < length or check != expected:
            return None, check, expected
        return body, check, expected

    def _header_at(self, octets: bytes, offset: int) -> tuple[int, int, bytes] | None:
        if len(octets) - offset < _BLOCK.size:
            return None
        marker, sequence, length, header_check, check = _BLOCK.unpack_from(octets, offset)
        if marker != _MARKER or header_check != self._header_check(sequence, length):
            return None
        return sequence, length, check

    def _judge(self, octets: bytes, offset: int, expected: bytes, found: bytes) -> None:
        """Raise unless the damage at ``offset`` is a torn tail: no later block was begun."""
        position = octets.find(_MARKER, offset)
        while position != -1:
            header = self._header_at(octets, position)
            if header is not None and header[0] > self._sequence:
                raise JournalCorrupt(
                    str(self.path), offset, expected.hex() or "of a block", found.hex() or "none"
                )
            position = octets.find(_MARKER, position + 1)

    def _open(self, body: bytes, offset: int, check: bytes) -> list[Any]:
        try:
            plain = self._decrypt(body)
            return [self._codec.decode(record) for record in _bodies.decode(plain)]
        except (ValueError, MalformedFrame, msgspec.DecodeError):
            raise JournalCorrupt(
                str(self.path), offset, "of records this version can read", check.hex()
            ) from None

    # -- blocks ----------------------------------------------------------------------------------

    def _block(self, bodies: list[bytes]) -> tuple[bytes, bytes]:
        body = self._encrypt(msgspec.msgpack.encode(bodies))
        check = self._check(self._sequence, body)
        header_check = self._header_check(self._sequence, len(body))
        header = _BLOCK.pack(_MARKER, self._sequence, len(body), header_check, check)
        return header + body, check

    def _header_check(self, sequence: int, length: int) -> bytes:
        octets = _CHECKED.pack(_MARKER, sequence, length)
        return hashlib.blake2b(octets, digest_size=8, key=self._salt).digest()

    def _check(self, sequence: int, body: bytes) -> bytes:
        digest = hashlib.blake2b(self._previous, digest_size=16, key=self._salt)
        digest.update(sequence.to_bytes(8, "big"))
        digest.update(body)
        return digest.digest()

    def _key_check(self) -> bytes:
        key = self._key.reveal_to("key check") if self._key is not None else b"plain"
        return hashlib.blake2b(
            self._salt, digest_size=16, key=key, person=b"veilgrid-journal"
        ).digest()

    def _associated(self) -> bytes:
        return self._salt + self._sequence.to_bytes(8, "big") + self._previous

    def _encrypt(self, plain: bytes) -> bytes:
        if self._key is None:
            return plain
        from nacl.bindings import crypto_aead_xchacha20poly1305_ietf_encrypt as encrypt

        nonce = secrets.token_bytes(_NONCE)
        key = self._key.reveal_to("journal encryption")
        return nonce + encrypt(plain, self._associated(), nonce, key)

    def _decrypt(self, body: bytes) -> bytes:
        if self._key is None:
            return body
        from nacl.bindings import crypto_aead_xchacha20poly1305_ietf_decrypt as decrypt
        from nacl.exceptions import CryptoError

        key = self._key.reveal_to("journal encryption")
        try:
            return bytes(decrypt(body[_NONCE:], self._associated(), body[:_NONCE], key))
        except CryptoError:
            raise ValueError("not encrypted under this key") from None


def _write_all(descriptor: int, octets: bytes) -> None:
    view = memoryview(octets)
    while view:
        view = view[os.write(descriptor, view) :]


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
