"""The ledger as a file that an outsider checks: records, certificates, proofs [ledger 6.3].

What a certified root is worth is in [ledger 6.2].

An export is one JSON object; octets are hexadecimal. It proves that a quorum of the replicas, as
they follow from the first configuration, signed the root of exactly these records. Whoever checks
must know the digest of the first configuration from elsewhere: it is the name of the ledger.
"""

from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from veilgrid.errors import Finding, InputError, invariant
from veilgrid.ledger.merkle import (
    EMPTY_ROOT,
    MerkleTree,
    consistency_holds,
    inclusion_holds,
    leaf_hash,
)
from veilgrid.ledger.message import (
    Anchored,
    CaughtUp,
    Configuration,
    Confirmed,
    Lineage,
    Notary,
    Verify,
    encode,
    lineage_end,
)
from veilgrid.ledger.service import Record
from veilgrid.signature import verify as verify_ed25519

EXPORT_FORMAT: Final = "veilgrid ledger export 1"
PROOF_FORMAT: Final = "veilgrid ledger proof 1"


class ExportFile(msgspec.Struct, frozen=True, kw_only=True):
    """What the file holds. Without ``records`` it anchors proofs and shows nothing else."""

    format: str
    genesis: str
    lineage: str
    records: list[str] | None


class ProofFile(msgspec.Struct, frozen=True, kw_only=True):
    """One proof against the root of an export.

    Attributes
    ----------
    kind
        ``inclusion``: ``record`` stands at ``index`` in the tree of ``size`` records.
        ``consistency``: the tree of ``size`` records begins with that of ``first_size`` records,
        whose root was ``first_root``.
    """

    format: str
    kind: str
    size: int
    path: list[str]
    index: int = 0
    record: str = ""
    first_size: int = 0
    first_root: str = ""


@dataclass(slots=True)
class Archive:
    """Collect the outcomes of one replica, or of several, until there is something to export."""

    genesis: Configuration
    records: list[bytes] = field(default_factory=list)
    lineage: Lineage | None = None

    def add(self, outcome: Any) -> None:
        """Take note of an outcome; those that add nothing are passed over."""
        match outcome:
            case Confirmed(_, _, first, records) | CaughtUp(_, first, records):
                if first <= len(self.records):
                    self.records[first:] = [
                        *records,
                        *self.records[first + len(records) :],
                    ]
            case Anchored(lineage):
                held = self.lineage.stable.summary.sequence if self.lineage else -1
                if lineage.stable.summary.sequence > held:
                    self.lineage = lineage

    def export(self) -> bytes | None:
        """Return the file up to the newest certified checkpoint, None before the first one."""
        if self.lineage is None or len(self.records) < self._certified:
            return None
        return exported(self.genesis, self.lineage, self.records[: self._certified])

    @property
    def _certified(self) -> int:
        return self.lineage.stable.summary.record_count if self.lineage else 0


def exported(genesis: Configuration, lineage: Lineage, records: list[bytes] | None) -> bytes:
    """Return the octets of an export file."""
    file = ExportFile(
        format=EXPORT_FORMAT,
        genesis=encode(genesis).hex(),
        lineage=encode(lineage).hex(),
        records=None if records is None else [record.hex() for record in records],
    )
    return msgspec.json.encode(file)


def inclusion_proof(records: list[bytes], index: int) -> bytes:
    """Return the octets of a proof that the record at ``index`` is among ``records``."""
    tree = MerkleTree(records)
    invariant(0 <= index < len(records), "the record is there")
    return msgspec.json.encode(
        ProofFile(
            format=PROOF_FORMAT,
            kind="inclusion",
            size=len(records),
            path=[node.hex() for node in tree.inclusion(index)],
            index=index,
            record=records[index].hex(),
        )
    )


def consistency_proof(records: list[bytes], first_size: int) -> bytes:
    """Return the octets of a proof that ``records`` begin with the first ``first_size`` of them."""
    tree = MerkleTree(records)
    return msgspec.json.encode(
        ProofFile(
            format=PROOF_FORMAT,
            kind="consistency",
            size=len(records),
            path=[node.hex() for node in tree.consistency(first_size)],
            first_size=first_size,
            first_root=tree.root(first_size).hex(),
        )
    )


@dataclass(frozen=True, slots=True)
class Checked:
    """What an export turned out to be.

    Attributes
    ----------
    problems
        Why it is not believed; empty if it is.
    """

    ledger: bytes
    sequence: int
    record_count: int
    root: bytes
    signers: tuple[str, ...]
    problems: tuple[str, ...]


def check_export(
    octets: bytes,
    name: str,
    ledger: bytes | None = None,
    verify: Verify = verify_ed25519,
) -> Checked:
    """Check an export without any help from those who made it.

    Parameters
    ----------
    octets
        Of the file.
    name
        What to call the file in findings.
    ledger : 32 octets
        Expected digest of the first configuration; None believes the file about who the replicas
        were at first.
    verify
        How a signature is checked.

    Raises
    ------
    InputError
        The file is no export at all.
    """
    file = _decoded(octets, name, ExportFile, EXPORT_FORMAT)
    genesis: Configuration = _nested(file.genesis, name, "genesis", Configuration)
    lineage: Lineage = _nested(file.lineage, name, "lineage", Lineage)
    problems: list[str] = []
    found = genesis.digest()
    if ledger is not None and ledger != found:
        problems.append("this is another ledger: its first configuration is not the expected one")
    if not genesis.is_sound():
        problems.append("the first configuration is not sound")
    elif lineage_end(Notary(found, verify), genesis, lineage) is None:
        problems.append("the checkpoint does not carry the signatures of a quorum")
    summary = lineage.stable.summary
    if file.records is not None:
        problems += _record_problems([_octets(r, name, "records") for r in file.records], lineage)
    return Checked(
        found,
        summary.sequence,
        summary.record_count,
        summary.record_root,
        tuple(vouch.replica for vouch in lineage.stable.vouches),
        tuple(problems),
    )


def _record_problems(records: list[bytes], lineage: Lineage) -> list[str]:
    summary = lineage.stable.summary
    problems = []
    if len(records) != summary.record_count:
        problems.append(f"{len(records)} records, the checkpoint has {summary.record_count}")
    root = MerkleTree(records).root() if records else EMPTY_ROOT
    if root != summary.record_root:
        problems.append("the records do not have the root that was signed")
    for position, octets in enumerate(records):
        try:
            record = msgspec.msgpack.decode(octets, type=Record)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            problems.append(f"record {position} cannot be read")
            break
        if record.position != position:
            problems.append(f"record {position} says that it is record {record.position}")
            break
    return problems


def check_proof(octets: bytes, name: str, checked: Checked) -> list[str]:
    """Return why a proof against a checked export is not believed; empty if it is.

    Raises
    ------
    InputError
        The file is no proof at all.
    """
    proof = _decoded(octets, name, ProofFile, PROOF_FORMAT)
    path = [_octets(node, name, "path") for node in proof.path]
    if proof.size != checked.record_count:
        return [f"a proof about {proof.size} records, the export has {checked.record_count}"]
    if proof.kind == "inclusion":
        leaf = leaf_hash(_octets(proof.record, name, "record"))
        is_shown = inclusion_holds(leaf, proof.index, proof.size, path, checked.root)
        return [] if is_shown else ["the record is not shown to be in the ledger"]
    if proof.kind == "consistency":
        first_root = _octets(proof.first_root, name, "first_root")
        is_shown = consistency_holds(proof.first_size, proof.size, path, first_root, checked.root)
        return [] if is_shown else ["the ledger is not shown to begin with the earlier one"]
    finding = Finding(f"{name}, kind", f"found {proof.kind!r}, expected inclusion or consistency")
    raise InputError([finding])


def _decoded(octets: bytes, name: str, kind: Any, form: str) -> Any:
    try:
        file = msgspec.json.decode(octets, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError([Finding(name, f"not a file of this kind ({error})")]) from None
    if file.format != form:
        problem = f"found {file.format!r}, expected {form!r}"
        raise InputError([Finding(f"{name}, format", problem)])
    return file


def _octets(text: str, name: str, where: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError:
        finding = Finding(f"{name}, {where}", "not hexadecimal", "was the file changed?")
        raise InputError([finding]) from None


def _nested(text: str, name: str, where: str, kind: Any) -> Any:
    try:
        return msgspec.msgpack.decode(_octets(text, name, where), type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        finding = Finding(f"{name}, {where}", "cannot be read", "was the file cut off?")
        raise InputError([finding]) from None
