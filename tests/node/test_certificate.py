"""Certificates and keys."""

import ssl
from pathlib import Path

import pytest

from veilgrid.errors import HandshakeFailed, SetupError
from veilgrid.machine import NodeId
from veilgrid.node.certificate import Authority, Credentials, Identity, identity_of
from veilgrid.secret import Secret


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority.create()


def shaken(server: Credentials, client: Credentials) -> tuple[dict, dict]:
    """Return what each side sees of the other after a handshake in memory."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = [
        server.server_context().wrap_bio(to_server, to_client, server_side=True),
        client.client_context().wrap_bio(to_client, to_server),
    ]
    for _ in range(10):
        for side in sides:
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    assert {side.version() for side in sides} == {"TLSv1.3"}
    return tuple(side.getpeercert() for side in sides)


def test_both_sides_learn_the_node_the_role_and_the_signature_key(
    authority: Authority, tmp_path: Path
) -> None:
    one = authority.issue(tmp_path, "p1", "party", verify_key=bytes(range(32)))
    other = authority.issue(tmp_path, "site.12", "site")
    seen_by_server, seen_by_client = shaken(one, other)
    assert identity_of(seen_by_server) == Identity(NodeId("site.12"), "site", b"")
    assert identity_of(seen_by_client) == Identity(NodeId("p1"), "party", bytes(range(32)))


def test_certificates_of_another_authority_or_out_of_date_are_refused(
    authority: Authority, tmp_path: Path
) -> None:
    mine = authority.issue(tmp_path, "p1", "party")
    foreign = Authority.create().issue(tmp_path / "foreign", "p2", "party")
    expired = authority.issue(tmp_path / "old", "p3", "party", valid_days=-0.001)
    for wrong in (foreign, expired):
        with pytest.raises(ssl.SSLError):
            shaken(mine, wrong)
        with pytest.raises(ssl.SSLError):
            shaken(wrong, mine)


def test_two_authorities_are_trusted_while_one_replaces_the_other(
    authority: Authority, tmp_path: Path
) -> None:
    successor = Authority.create("successor")
    one = authority.issue(tmp_path, "p1", "party")
    other = successor.issue(tmp_path, "p2", "party")
    both = authority.certificate_pem + successor.certificate_pem
    for made in (one, other):
        made.authority.write_bytes(both)
    shaken(one, other)


def test_a_saved_authority_goes_on_issuing_and_its_key_is_private(
    authority: Authority, tmp_path: Path
) -> None:
    authority.save(tmp_path / "ca")
    assert (tmp_path / "ca" / "ca.key").stat().st_mode & 0o777 == 0o600
    again = Authority.load(tmp_path / "ca")
    shaken(again.issue(tmp_path, "p1", "party"), authority.issue(tmp_path, "p2", "party"))
    with pytest.raises(SetupError, match="no usable authority"):
        Authority.load(tmp_path)


def test_a_key_file_can_be_encrypted_and_opens_with_its_password_only(
    authority: Authority, tmp_path: Path
) -> None:
    locked = authority.issue(tmp_path, "p1", "party", password=Secret(b"correct horse"))
    assert locked.key.stat().st_mode & 0o777 == 0o600
    assert b"ENCRYPTED" in locked.key.read_bytes()
    shaken(locked, authority.issue(tmp_path, "p2", "party"))
    for password in (Secret(b"wrong"), None):
        wrong = Credentials(locked.certificate, locked.key, locked.authority, password)
        with pytest.raises(SetupError, match="make a new pair"):
            wrong.server_context()


@pytest.mark.parametrize("name", ["", "a/b", "a b", "é", "x" * 65, "-a", "a\n"])
def test_a_name_that_could_be_misread_is_not_certified(
    authority: Authority, tmp_path: Path, name: str
) -> None:
    with pytest.raises(SetupError, match="letters, digits"):
        authority.issue(tmp_path, name, "party")
    with pytest.raises(SetupError, match="letters, digits"):
        authority.issue(tmp_path, "p1", name)


def test_a_certificate_without_a_node_identifies_nobody() -> None:
    good, key = "veilgrid://party/p1", "veilgrid-key:" + 64 * "0"
    assert identity_of({"subjectAltName": (("URI", good), ("URI", key))}).node == "p1"
    wrong = [
        (("DNS", good),),
        (("URI", good), ("URI", "veilgrid://party/p2")),
        (("URI", "veilgrid://party"),),
        (("URI", "veilgrid://party/p1/p2"),),
        (("URI", good), ("URI", "veilgrid-key:00")),
        (("URI", good), ("URI", "veilgrid-key:" + 64 * "x")),
        (("URI", good), ("URI", key), ("URI", key)),
    ]
    for certificate in (None, {}, *({"subjectAltName": names} for names in wrong)):
        with pytest.raises(HandshakeFailed, match="names no node"):
            identity_of(certificate)
