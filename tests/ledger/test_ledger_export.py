"""Exports and proofs: what `veilgrid verify` believes, and what it does not."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner
from ledger_world import FAST, REPLICAS, Register, real_signer

from veilgrid.cli import cli
from veilgrid.errors import InputError
from veilgrid.ledger.client import Client
from veilgrid.ledger.export import (
    Archive,
    check_export,
    consistency_proof,
    exported,
    inclusion_proof,
)
from veilgrid.ledger.message import MESSAGES, Configuration, Member
from veilgrid.ledger.replica import Replica
from veilgrid.ledger.service import CHECKPOINT_OPERATION, Record
from veilgrid.machine import NodeId
from veilgrid.sim import CALM, World

C0 = NodeId("c0")
SIGNERS = {name: real_signer(name) for name in [*REPLICAS, C0]}
GENESIS = Configuration(
    0,
    tuple(Member(node, SIGNERS[node].verify_key) for node in REPLICAS),
    (Member(C0, SIGNERS[C0].verify_key),),
)


@pytest.fixture(scope="module")
def archive() -> Archive:
    """Six operations under a certified checkpoint, as one replica reported them."""
    first = [(b"one",), (b"two", b"three"), (b"four", b"five", CHECKPOINT_OPERATION)]
    builds: dict[NodeId, Any] = {
        node: lambda r, node=node: Replica(node, GENESIS, SIGNERS[node], Register(), r, FAST)
        for node in REPLICAS
    }
    builds[C0] = lambda r: Client(C0, GENESIS, SIGNERS[C0], r, first_operations=first)
    world = World(builds, 1, CALM, messages=MESSAGES)

    def collected(world: World) -> Archive:
        archive = Archive(GENESIS)
        for outcome in world.decided(REPLICAS[1]):
            archive.add(outcome)
        return archive

    assert world.run(5_000, lambda w: collected(w).export() is not None)
    return collected(world)


def verify(folder: Path, octets: bytes, *arguments: str, **files: bytes) -> tuple[int, Any]:
    (folder / "export.json").write_bytes(octets)
    for name, content in files.items():
        (folder / f"{name}.json").write_bytes(content)
        arguments = (*arguments, "--proof", str(folder / f"{name}.json"))
    done = CliRunner().invoke(
        cli, ["verify", str(folder / "export.json"), *arguments, "--json"], standalone_mode=False
    )
    if done.exception is not None:
        raise done.exception
    return done.return_value, json.loads(done.stdout)


def test_an_export_is_accepted_with_its_proofs(archive: Archive, tmp_path: Path) -> None:
    octets = archive.export()
    assert octets is not None
    records = archive.records
    code, found = verify(
        tmp_path,
        octets,
        "--ledger",
        GENESIS.digest().hex(),
        inside=inclusion_proof(records, 3),
        grown=consistency_proof(records, 2),
    )
    assert (code, found["accepted"], found["records"]) == (0, True, 6)
    assert found["is_ledger_expected"]
    assert len(found["signers"]) == 3
    operations = [msgspec.msgpack.decode(r, type=Record).operation for r in records]
    assert operations == [b"one", b"two", b"three", b"four", b"five", CHECKPOINT_OPERATION]


def test_a_bare_export_still_anchors_proofs(archive: Archive, tmp_path: Path) -> None:
    """An outsider may be shown one record without all the others."""
    assert archive.lineage is not None
    bare = exported(GENESIS, archive.lineage, None)
    code, found = verify(tmp_path, bare, inside=inclusion_proof(archive.records, 0))
    assert (code, found["accepted"]) == (0, True)


def changed(archive: Archive, **fields: Any) -> bytes:
    file = json.loads(archive.export() or b"")
    return json.dumps({**file, **fields}).encode()


def test_changed_records_are_not_accepted(archive: Archive, tmp_path: Path) -> None:
    """Changed, dropped, added, exchanged: each one must be seen."""
    records = [record.hex() for record in archive.records]
    last = records[-1]
    for other in (
        [*records[:-1], last[:-2] + ("00" if last[-2:] != "00" else "01")],
        records[:-1],
        [*records, last],
        [records[1], records[0], *records[2:]],
    ):
        code, found = verify(tmp_path, changed(archive, records=other))
        assert (code, found["accepted"]) == (1, False)
        assert found["problems"]


def test_another_ledger_or_too_few_signatures_are_not_accepted(
    archive: Archive, tmp_path: Path
) -> None:
    octets, lineage = archive.export(), archive.lineage
    assert octets is not None
    assert lineage is not None
    code, found = verify(tmp_path, octets, "--ledger", "00" * 32)
    assert code == 1
    assert "another ledger" in found["problems"][0]
    few = msgspec.structs.replace(lineage.stable, vouches=lineage.stable.vouches[:2])
    swapped = msgspec.structs.replace(GENESIS, replicas=GENESIS.replicas[::-1])
    forged = msgspec.structs.replace(
        lineage.stable,
        summary=msgspec.structs.replace(lineage.stable.summary, record_root=bytes(32)),
    )
    for genesis, stable in ((GENESIS, few), (GENESIS, forged), (swapped, lineage.stable)):
        other = msgspec.structs.replace(lineage, stable=stable)
        assert verify(tmp_path, exported(genesis, other, None))[0] == 1


def test_a_proof_of_something_else_is_not_accepted(archive: Archive, tmp_path: Path) -> None:
    octets = archive.export() or b""
    other = [*archive.records[:-1], b"other"]
    for proof in (inclusion_proof(other, 5), consistency_proof(other, 3), _moved(archive)):
        code, found = verify(tmp_path, octets, wrong=proof)
        assert code == 1
        assert found["proofs"][0]["problems"]


def _moved(archive: Archive) -> bytes:
    proof = json.loads(inclusion_proof(archive.records, 3))
    return json.dumps({**proof, "index": 2}).encode()


@pytest.mark.parametrize(
    "octets",
    [b"", b"{}", b"[1", b'{"format": "x", "genesis": "", "lineage": "", "records": null}'],
)
def test_a_file_of_another_kind_is_an_input_error(octets: bytes) -> None:
    """Exit code 2 says: not an export; 1 says: an export that is not believed."""
    with pytest.raises(InputError):
        check_export(octets, "file")


def test_damaged_fields_are_named(archive: Archive) -> None:
    for name in ("genesis", "lineage", "records"):
        value: Any = ["zz"] if name == "records" else "00"
        with pytest.raises(InputError, match=name):
            check_export(changed(archive, **{name: value}), "file")


def test_the_command_speaks_to_people(archive: Archive, tmp_path: Path) -> None:
    path = tmp_path / "export.json"
    path.write_bytes(archive.export() or b"")
    done = CliRunner().invoke(cli, ["verify", str(path)], standalone_mode=False)
    assert done.return_value == 0
    assert done.stdout.startswith("accepted: 6 records")
    assert "--ledger" in done.stdout
