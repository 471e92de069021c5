"""The folder that `veilgrid init` writes, and what is refused when it is read."""

import json
import logging
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from veilgrid.cli import cli
from veilgrid.cli._part import provider_of
from veilgrid.errors import ConfigError, InputError, SetupError
from veilgrid.node import scaffold
from veilgrid.node.keys import KeyFolder
from veilgrid.node.settings import ProcessEntry, read_deployment, read_settings
from veilgrid.signature import verify

COUNTS = {"operator": 1, "site": 2, "party": 3, "validator": 4, "worker": 2}


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logger = logging.getLogger("veilgrid.node.attest")
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(logging.NOTSET)


def plan(**changes: object) -> scaffold.Plan:
    given = {
        "name": "north",
        "scenario": "six-bus",
        "buses": tuple("abcde"),
        "counts": COUNTS,
        **changes,
    }
    return scaffold.Plan(**given)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "north"
    scaffold.create(folder, plan())
    return folder


def test_every_process_can_start_from_what_was_written(made: Path) -> None:
    """Names, roles, keys and peers agree between the files, for every process."""
    everyone = read_deployment(made / "deployment.toml").process
    assert len(everyone) == sum(COUNTS.values())
    assert [bus for one in everyone for bus in one.buses] == list("abcde")
    for one in everyone:
        settings = read_settings(made / "nodes" / f"{one.node}.toml")
        signature = settings.signer().sign("test/1", b"x")
        assert verify(bytes.fromhex(one.verify_key), "test/1", b"x", signature)
        assert settings.credentials.server_context().minimum_version == ssl.TLSVersion.TLSv1_3
        assert len(settings.journal_key().reveal_to("test")) == 32
        others = {peer.node for peer in settings.peers()}
        dials_only = one.role == "site"
        expected = {p.node for p in everyone if not (dials_only and p.role == "site")}
        assert others == expected - {one.node}


def test_evidence_is_asked_for_where_there_is_something_to_make_it_with(
    made: Path, tmp_path: Path
) -> None:
    """A production policy without a provider would let nobody in; a process says so at once."""
    assert read_deployment(made / "deployment.toml").attested
    folders = {"production": {"is_software_accepted": False}, "sealed": {"scheme": "sealed"}}
    for name, changes in folders.items():
        scaffold.create(tmp_path / name, plan(**changes))
        is_asked = name == "sealed"  # Its parties and sites ask each other.
        assert read_deployment(tmp_path / name / "deployment.toml").attested is is_asked
    assert provider_of(read_settings(made / "nodes" / "worker-1.toml")).hardware is False
    with pytest.raises(SetupError, match="software_root"):
        provider_of(read_settings(tmp_path / "production" / "nodes" / "worker-1.toml"))


def test_only_the_owner_can_read_secret_files(made: Path) -> None:
    for path in made.rglob("*"):
        is_secret = path.suffix in (".key", ".seed", ".journal-key", ".root")
        assert not is_secret or path.stat().st_mode & 0o077 == 0, path.name
    assert made.stat().st_mode & 0o077 == 0


def test_public_files_hold_no_secret_octets(made: Path) -> None:
    """`deployment.toml` and the rest are copied to everybody."""
    secrets = [p.read_bytes() for p in (made / "keys").iterdir() if p.stat().st_mode & 0o077 == 0]
    secrets = [octets for octets in secrets if len(octets) == 32]
    assert len(secrets) == 2 * sum(COUNTS.values()) + 1
    public = [path for path in made.rglob("*") if path.suffix in (".toml", ".md", ".pem")]
    for path in public:
        text = path.read_bytes()
        for octets in secrets:
            assert octets not in text
            assert octets.hex().encode() not in text


def test_wrong_numbers_are_found_all_at_once(tmp_path: Path) -> None:
    counts = {"operator": 1, "site": 9, "party": 2, "validator": 5, "worker": 0}
    with pytest.raises(InputError) as caught:
        scaffold.create(tmp_path / "x", plan(counts=counts, base_port=80, valid_days=0))
    text = str(caught.value)
    for part in ("3f + 1", "2 parties", "9 processes", "--workers", "--base-port", "--valid-days"):
        assert part in text
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("x")
    with pytest.raises(SetupError, match="exists already"):
        scaffold.create(tmp_path, plan())
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_broken_rules_of_a_directory_are_found_all_at_once(made: Path, tmp_path: Path) -> None:
    text = (made / "deployment.toml").read_text()
    text = text.replace("format = 1", "format = 2\nowner = 3")
    text = text.replace('role = "worker"', 'role = "miner"', 1).replace(
        "port = 47002", "port = 1.5"
    )
    (tmp_path / "deployment.toml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_deployment(tmp_path / "deployment.toml")
    assert len(caught.value.findings) == 3
    for part in ("key owner", "entry 6, key role", "entry 3, key port"):
        assert part in str(caught.value)


def test_broken_rules_across_entries_are_found_all_at_once(made: Path, tmp_path: Path) -> None:
    text = (made / "deployment.toml").read_text()
    key = read_deployment(made / "deployment.toml").process[1].verify_key
    text = text.replace("format = 1", "format = 2").replace("degree = 1", "degree = 2")
    text = text.replace("47002", "47001").replace('"validator-3"', '"validator-2"')
    text = text.replace(key, "xyz").replace('["a", "b"]', '["a", "c"]')
    (tmp_path / "deployment.toml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_deployment(tmp_path / "deployment.toml")
    found = str(caught.value)
    parts = ("format", "degree", "47001 is taken", "stands there twice", "64 hex", "bus c belongs")
    assert [part for part in parts if part not in found] == []
    assert len(caught.value.findings) == len(parts)


def test_a_process_that_the_directory_does_not_list_does_not_start(made: Path) -> None:
    path = made / "nodes" / "stranger.toml"
    path.write_text('format = 1\nnode = "stranger"\nstate = "x"\n')
    with pytest.raises(ConfigError, match="does not list"):
        read_settings(path)
    path.unlink()


def test_a_signature_key_that_the_directory_does_not_name_is_refused(
    made: Path, tmp_path: Path
) -> None:
    """Whoever started with an old key would be refused by everybody; here he learns why."""
    folder = tmp_path / "copy"
    scaffold.create(folder, plan())
    (folder / "keys" / "party-1.seed").replace(folder / "keys" / "party-2.seed")
    with pytest.raises(SetupError, match="is not the one") as caught:
        read_settings(folder / "nodes" / "party-2.toml").signer()
    assert (folder / "keys" / "party-2.seed").read_bytes().hex() not in str(caught.value)


def test_the_verb_says_what_it_wrote(tmp_path: Path) -> None:
    arguments = ["init", str(tmp_path / "d"), "--scenario", "six-bus", "--sites", "2", "--json"]
    done = CliRunner().invoke(cli, arguments, standalone_mode=False)
    assert done.exception is None
    found = json.loads(done.stdout)
    assert [p["role"] for p in found["processes"]].count("validator") == 4
    for process in found["processes"]:
        assert read_settings(Path(process["config"])).me.verify_key == process["verify_key"]
    buses = [bus for process in found["processes"] for bus in process["buses"]]
    assert buses == ["grid", "mill", "farm", "village", "school", "depot"]


def test_a_process_can_be_added(tmp_path: Path) -> None:
    folder = tmp_path / "d"
    scaffold.create(folder, plan(buses=tuple("abc")))
    entry = ProcessEntry(node="worker-9", role="worker", verify_key="", port=48_000)
    added = scaffold.add(folder, entry, 30)
    settings = read_settings(folder / "nodes" / "worker-9.toml")
    assert settings.signer().verify_key.hex() == added.verify_key
    with pytest.raises(InputError) as caught:
        scaffold.add(folder, entry, 30)
    assert len(caught.value.findings) == 2
    validator = ProcessEntry(node="v", role="validator", verify_key="", port=48_001)
    with pytest.raises(InputError, match="3f"):
        scaffold.add(folder, validator, 30)
    site = ProcessEntry(node="s", role="site", verify_key="", buses=("a",))
    with pytest.raises(InputError, match="belongs to another"):
        scaffold.add(folder, site, 30)


def test_sealed_keys_open_with_their_root_only(tmp_path: Path) -> None:
    """A stolen disk without the root is worth nothing."""
    folder, root = tmp_path / "d", tmp_path / "elsewhere" / "root"
    scaffold.create(folder, plan(software_root=root, is_sealed=True))
    settings = read_settings(folder / "nodes" / "party-1.toml")
    seed = settings.signer().seed.reveal_to("test")
    journal_key = settings.journal_key().reveal_to("test")
    settings.credentials.client_context()
    for path in folder.rglob("*"):
        if path.is_file():
            assert seed not in path.read_bytes()
            assert journal_key not in path.read_bytes()
    assert b"ENCRYPTED" in settings.credentials.key.read_bytes()
    assert all(one.is_sealed and not one.problems for one in KeyFolder(folder).states(0.0))
    root.write_bytes(bytes(32))
    with pytest.raises(SetupError, match="cannot be unsealed"):
        settings.signer()
    with pytest.raises(SetupError, match="make a new pair"):
        settings.credentials.client_context()
    root.unlink()
    with pytest.raises(SetupError, match="cannot be read"):
        settings.journal_key()
