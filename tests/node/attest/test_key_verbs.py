"""`veilgrid key` and the attestation part of `veilgrid verify`."""

import json
import logging
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from evidence_samples import SAMPLES

from veilgrid.cli import cli
from veilgrid.errors import InputError, SetupError, VeilgridError
from veilgrid.node import scaffold
from veilgrid.node.attest.evidence import encode
from veilgrid.node.certificate import Credentials
from veilgrid.node.keys import KeyFolder
from veilgrid.node.settings import read_deployment, read_settings

COUNTS = {"operator": 1, "site": 1, "party": 3}
NONCE = "0123456789abcdef" * 2


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logger = logging.getLogger("veilgrid.node.attest")
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(logging.NOTSET)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "d"
    given = {"name": "d", "scenario": "six-bus", "buses": ("a", "b"), "counts": COUNTS}
    scaffold.create(made, scaffold.Plan(**given))  # type: ignore[arg-type]
    return made


def called(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(one) for one in arguments], standalone_mode=False)


def answer(*arguments: object) -> dict[str, Any]:
    done = called(*arguments, "--json")
    assert done.exception is None, done.exception
    return json.loads(done.stdout)


def credentials(folder: Path, node: str) -> Credentials:
    return read_settings(folder / "nodes" / f"{node}.toml").credentials


def contexts(folder: Path, node: str) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """What a process holds that has taken up its files at this moment."""
    mine = credentials(folder, node)
    return mine.server_context(), mine.client_context()


def is_trusted(server: ssl.SSLContext, client: ssl.SSLContext) -> bool:
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = [
        server.wrap_bio(to_server, to_client, server_side=True),
        client.wrap_bio(to_client, to_server),
    ]
    for _ in range(10):
        for side in sides:
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
            except ssl.SSLError:
                return False
    return all(side.version() == "TLSv1.3" for side in sides)


def test_rotated_certificates_work_with_those_that_were_not_taken_up_yet(folder: Path) -> None:
    """No moment at which two processes refuse each other."""
    before = {node: contexts(folder, node) for node in ("party-1", "party-2")}
    key = (folder / "keys" / "party-1.key").read_bytes()
    seed = (folder / "keys" / "party-1.seed").read_bytes()
    assert answer("key", "rotate", folder, "party-1")["rotated"] == ["party-1"]
    assert (folder / "keys" / "party-1.key").read_bytes() != key
    assert (folder / "keys" / "party-1.seed").read_bytes() == seed
    after = contexts(folder, "party-1")
    for mine in (after, before["party-1"]):
        assert is_trusted(mine[0], before["party-2"][1])
        assert is_trusted(before["party-2"][0], mine[1])
    assert len(answer("key", "rotate", folder)["rotated"]) == 5


def test_an_authority_is_replaced_without_a_moment_of_distrust(folder: Path) -> None:
    """Whichever of two processes has taken up its files already, at every step."""
    nodes = ("party-1", "party-2")
    lives = {node: [contexts(folder, node)] for node in nodes}
    first = lives["party-1"][0]
    for step in ("introduce", "switch", "retire"):
        assert set(answer("key", "authority", folder, "--step", step)["changed"]) >= set(nodes)
        for node in nodes:
            lives[node] = [lives[node][-1], contexts(folder, node)]
        for mine in lives["party-1"]:
            for other in lives["party-2"]:
                assert is_trusted(mine[0], other[1]), step
                assert is_trusted(other[0], mine[1]), step
    last = contexts(folder, "party-2")
    assert not is_trusted(last[0], first[1]), "the old authority is trusted no more"
    assert not (folder / "authority-former").exists()
    assert answer("key", "show", folder)["sound"] is True


@pytest.mark.parametrize("steps", [["switch"], ["retire"], ["introduce", "introduce"]])
def test_steps_in_another_order_are_refused(folder: Path, steps: list[str]) -> None:
    """Retiring first would leave nobody whom anybody trusts."""
    *before, last = steps
    for step in before:
        answer("key", "authority", folder, "--step", step)
    files = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    done = called("key", "authority", folder, "--step", last)
    assert isinstance(done.exception, InputError)
    assert {path: path.read_bytes() for path in files} == files


def test_a_new_signature_key_is_named_in_the_directory(folder: Path) -> None:
    before = read_deployment(folder / "deployment.toml")
    answer("key", "rotate", folder, "party-2", "--signature")
    after = read_deployment(folder / "deployment.toml")
    changed = [a.node for a, b in zip(after.process, before.process, strict=True) if a != b]
    assert changed == ["party-2"]
    read_settings(folder / "nodes" / "party-2.toml").signer()
    assert answer("key", "show", folder)["sound"] is True
    assert isinstance(called("key", "rotate", folder, "--signature").exception, InputError)


def test_a_validator_keeps_its_signature_key(tmp_path: Path) -> None:
    counts = {**COUNTS, "validator": 4, "worker": 1}
    given = {"name": "d", "scenario": "six-bus", "buses": ("a", "b"), "counts": counts}
    scaffold.create(tmp_path / "d", scaffold.Plan(**given))  # type: ignore[arg-type]
    done = called("key", "rotate", tmp_path / "d", "validator-1", "worker-1", "--signature")
    assert isinstance(done.exception, InputError)
    assert "the ledger knows by its key" in str(done.exception)


def test_show_names_what_is_wrong_and_shows_no_secret(folder: Path) -> None:
    assert called("key", "show", folder).return_value == 0
    secrets = [path.read_bytes() for path in (folder / "keys").glob("*.seed")]
    keys = folder / "keys"
    (keys / "party-1.seed").chmod(0o644)
    (keys / "party-2.seed").write_bytes(bytes(32))
    (keys / "party-3.pem").write_bytes((keys / "party-2.pem").read_bytes())
    (keys / "operator.key").unlink()
    found = answer("key", "show", folder)
    assert found["sound"] is False
    problems = {one["node"]: " ".join(one["problems"]) for one in found["keys"]}
    assert "read by others" in problems["party-1"]
    assert "not the key" in problems["party-2"]
    assert "does not name party party-3" in problems["party-3"]
    assert "vouches for another" in problems["party-3"]
    assert "operator.key is missing" in problems["operator"]
    assert problems["site-1"] == ""
    done = called("key", "show", folder)
    assert done.return_value == 1
    for octets in secrets:
        assert octets.hex() not in done.output + json.dumps(found)
    assert isinstance(called("key", "show", folder, "nobody").exception, InputError)


@pytest.mark.parametrize(("days", "word"), [(29, "ends in 1.0 days"), (31, "has expired")])
def test_show_tells_when_certificates_end(folder: Path, days: float, word: str) -> None:
    left = KeyFolder(folder).states(0.0)[0].days_left
    assert left is not None
    (state, *_) = KeyFolder(folder).states((left - 30 + days) * 86_400)
    assert word in " ".join(state.problems)


def test_a_sealed_deployment_stays_sealed_when_keys_are_rotated(tmp_path: Path) -> None:
    folder, root = tmp_path / "d", tmp_path / "root"
    given = {"name": "d", "scenario": "six-bus", "buses": ("a", "b"), "counts": COUNTS}
    plan = scaffold.Plan(**given, software_root=root, is_sealed=True)  # type: ignore[arg-type]
    scaffold.create(folder, plan)
    answer("key", "rotate", folder)
    answer("key", "rotate", folder, "party-1", "--signature")
    answer("key", "new", folder, "party-9", "--role", "party", "--port", 48_000)
    for node in ("party-1", "party-9"):
        settings = read_settings(folder / "nodes" / f"{node}.toml")
        settings.signer()
        settings.credentials.server_context()
        assert b"ENCRYPTED" in settings.credentials.key.read_bytes()
    assert all(one["is_sealed"] for one in answer("key", "show", folder)["keys"])
    root.unlink()
    assert isinstance(called("key", "rotate", folder).exception, SetupError)


# -- attestation ----------------------------------------------------------------------------------


def asked(folder: Path, node: str = "party-1") -> list[object]:
    me = read_settings(folder / "nodes" / f"{node}.toml").me
    return ["--policy", folder / "attestation.toml", "--public-key", me.verify_key]


def test_software_evidence_passes_in_development_and_is_called_not_hardware(folder: Path) -> None:
    quoted = answer("key", "attest", folder, "party-1", "--nonce", NONCE)
    assert quoted["hardware"] is False
    verify = ["verify", "--attestation", quoted["path"], *asked(folder), "--nonce", NONCE]
    found = answer(*verify)
    assert found["accepted"] is True
    assert found["attestations"][0]["hardware"] is False
    assert found["attestations"][0]["measurement"] == quoted["measurement"]
    done = called(*verify)
    assert done.return_value == 0
    assert "NOT hardware" in done.output


def test_evidence_for_another_process_or_nonce_does_not_pass(folder: Path) -> None:
    path = answer("key", "attest", folder, "party-1", "--nonce", NONCE)["path"]
    for options in (
        [*asked(folder), "--nonce", "ff" * 16],
        [*asked(folder, "party-2"), "--nonce", NONCE],
    ):
        done = called("verify", "--attestation", path, *options, "--json")
        assert done.return_value == 1
        (found,) = json.loads(done.stdout)["attestations"]
        assert found["problems"] == [
            "the evidence is bound to another key or another nonce than was asked"
        ]


def test_a_production_policy_refuses_software_evidence(folder: Path, tmp_path: Path) -> None:
    done = called("init", tmp_path / "p", "--scenario", "six-bus", "--production", "--json")
    assert done.exception is None
    assert "accept_software = false" in (tmp_path / "p" / "attestation.toml").read_text()
    assert not (tmp_path / "p" / "keys" / "software.root").exists()
    path = answer("key", "attest", folder, "party-1", "--nonce", NONCE)["path"]
    options = asked(folder)
    options[1] = tmp_path / "p" / "attestation.toml"
    done = called("verify", "--attestation", path, *options, "--nonce", NONCE, "--json")
    assert done.return_value == 1
    (found,) = json.loads(done.stdout)["attestations"]
    assert "is not hardware" in found["problems"][0]
    production = called("key", "attest", tmp_path / "p", "worker-1", "--nonce", NONCE)
    assert isinstance(production.exception, InputError)
    assert "names no software_root" in str(production.exception)


def test_published_evidence_passes_through_the_verb(tmp_path: Path) -> None:
    sample = SAMPLES["tdx"]()
    (tmp_path / "e.json").write_bytes(encode(sample.evidence))
    program = sample.policy.program[0]
    text = f'format = 1\n[[program]]\nkind = "tdx"\nmeasurement = "{program.measurement}"\n'
    (tmp_path / "p.toml").write_text(text)
    verify = ["verify", "--attestation", tmp_path / "e.json", "--policy", tmp_path / "p.toml"]
    verify += ["--report-data", sample.bound.hex()]
    found = answer(*verify, "--now", "2025-06-21T12:00:00Z")
    assert found["accepted"] is True
    assert found["attestations"][0]["hardware"] is True
    late = called(*verify, "--now", "2025-08-01", "--json")
    assert late.return_value == 1
    assert "ended at" in json.loads(late.stdout)["attestations"][0]["problems"][0]


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ([], 2),
        (["--nonce", NONCE], 2),
        (["--nonce", NONCE, "--public-key", "00" * 32, "--report-data", "00" * 64], 2),
        (["--policy", "P", "--report-data", "00"], 1),
        (["--policy", "P", "--nonce", "xyz", "--public-key", "00" * 32], 1),
        (["--policy", "P", "--nonce", NONCE, "--public-key", "00" * 32, "--now", "noon"], 1),
    ],
)
def test_evidence_that_is_bound_to_nothing_is_not_looked_at(
    folder: Path, options: list[str], count: int
) -> None:
    """A verdict without a question would accept what somebody else was told yesterday."""
    path = answer("key", "attest", folder, "party-1", "--nonce", NONCE)["path"]
    given = [str(folder / "attestation.toml") if one == "P" else one for one in options]
    done = called("verify", "--attestation", path, *given)
    assert isinstance(done.exception, InputError)
    assert len(done.exception.findings) == count


def test_files_that_are_no_evidence_are_findings(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    for octets in (b"", b"{", b"[]", b'{"type": "Evidence", "kind": "sgx9", "statement": ""}'):
        path.write_bytes(octets)
        done = called("verify", "--attestation", path, *asked(folder), "--nonce", NONCE)
        assert isinstance(done.exception, VeilgridError)
        assert done.exception.exit_code == 2
    assert isinstance(called("verify").exception, InputError)
