"""Registered clients: the same inputs as signed ones, no public-key work, and no forging."""

from typing import Any

import msgspec
import numpy as np
import pytest
from mpc_committee import TestSigner
from nacl.public import PrivateKey
from test_mpc_bulk import COUNT, SESSION, VALUES, Committee, histogram, in_the_clear, inputs_of

from veilgrid.errors import InvariantError
from veilgrid.mpc import client, keyed
from veilgrid.mpc.message import Submission
from veilgrid.secret import Secret, SeededRandomness

SCOPE = b"monday"


class Registered(Committee):
    """A committee whose clients registered before."""

    def __init__(self, n: int, degree: int, layout: Any, fallback: Any = None) -> None:
        super().__init__(n, degree, layout, fallback)
        public = [bytes(box.public_key) for box in self.boxes]
        self.said: dict[str, keyed.Registration] = {}
        self.keys: dict[str, keyed.ClientKeys] = {}
        for row, name in enumerate(self.names):
            self.said[name], self.keys[name] = keyed.register(
                SCOPE,
                name,
                degree=degree,
                box_keys=public,
                signer=self.signers[name],
                randomness=SeededRandomness(row),
            )
        self.mailboxes = [self.mailbox(party, SESSION) for party in range(1, n + 1)]

    def admitted(self, party: int, said: keyed.Registration) -> keyed.PartyKeys | None:
        enrolled = client.Enrolled(self.signers[said.client].verify_key)
        key = Secret(bytes(self.boxes[party - 1]))
        return keyed.admit(said, SCOPE, enrolled, party, self.n, self.degree, key)

    def mailbox(self, party: int, session: bytes, without: str = "") -> keyed.KeyedMailbox:
        enrolled = {name: client.Enrolled(one.verify_key) for name, one in self.signers.items()}
        keys = {
            name: found
            for name, said in self.said.items()
            if name != without and (found := self.admitted(party, said)) is not None
        }
        return keyed.KeyedMailbox(
            party,
            self.n,
            self.degree,
            session,
            enrolled,
            Secret(bytes(self.boxes[party - 1])),
            self.layout,
            keys,
        )

    def submission(self, row: int, elements: np.ndarray, **changes: Any) -> Submission:
        name = self.names[row]
        made = keyed.submit_keyed(SESSION, name, elements.tolist(), self.keys[name])
        return msgspec.structs.replace(made, **changes)


def good_inputs(layout: Any) -> np.ndarray:
    return inputs_of(layout, np.clip(VALUES, 2, 20))


@pytest.mark.parametrize(("n", "degree"), [(3, 1), (5, 2)])
def test_a_round_of_registered_clients_equals_the_clear(n: int, degree: int) -> None:
    """Missing and invalid inputs are named as with signed messages."""
    layout = histogram()
    inputs = good_inputs(layout)
    inputs[5, layout.start("bin")] = 7
    committee = Registered(n, degree, layout)
    committee.fill(inputs, skip=(4,))
    outcome = committee.outcome()
    assert outcome.result[2] == {"client 4": "missing", "client 5": "invalid"}
    kept = inputs.copy()
    kept[[4]] = -1
    assert outcome.result[0] == in_the_clear(layout, kept)[0]


def test_no_one_party_can_forge_a_message_and_no_message_serves_twice() -> None:
    """A party knows its own code key only; sessions, names and repetitions are refused."""
    layout = histogram()
    inputs = good_inputs(layout)
    committee = Registered(3, 1, layout)
    said = committee.submission(0, inputs[0])
    other = committee.submission(0, inputs[1])
    mailbox = committee.mailboxes[1]
    for changed in ({"correction": other.correction}, {"commitments": other.commitments[::-1]}):
        assert mailbox.accept(msgspec.structs.replace(said, **changed)) == "forged"
    forged = msgspec.structs.replace(other, boxes=[other.boxes[0], bytes(16), bytes(16)])
    assert mailbox.accept(forged) == "forged"
    assert mailbox.accept(msgspec.structs.replace(said, client="client 1")) == "forged"
    assert mailbox.accept(msgspec.structs.replace(said, client="eve")) == "unknown client"
    assert mailbox.accept(msgspec.structs.replace(said, session=b"old")) == "other session"
    assert mailbox.accept(msgspec.structs.replace(said, signature=bytes(64))) == "wrong shape"
    assert committee.mailbox(2, b"tomorrow").accept(said) == "other session"
    moved = msgspec.structs.replace(said, session=b"tomorrow")
    assert committee.mailbox(2, b"tomorrow").accept(moved) == "forged"
    assert committee.mailbox(2, SESSION, without="client 0").accept(said) == "unknown client"
    assert mailbox.accept(said) == ""
    assert mailbox.accept(other) == "repeated"
    assert mailbox.received[said.client].submission == said


def test_a_client_that_pleases_some_parties_only_blames_none_of_them() -> None:
    """Codes wrong for one party: the others vouch. Wrong for two: its input is missing."""
    layout = histogram()
    inputs = good_inputs(layout)
    committee = Registered(3, 1, layout)
    committee.fill(inputs, skip=(1, 2))
    for row, fooled in ((1, (3,)), (2, (2, 3))):
        said = committee.submission(row, inputs[row])
        codes = [bytes(16) if k + 1 in fooled else one for k, one in enumerate(said.boxes)]
        said = msgspec.structs.replace(said, boxes=codes)
        answers = [one.accept(said) for one in committee.mailboxes]
        assert answers == ["forged" if k + 1 in fooled else "" for k in range(3)]
    outcome = committee.outcome()
    assert outcome.result[2] == {"client 2": "missing"}
    kept = inputs.copy()
    kept[2] = -1
    assert outcome.result[0] == in_the_clear(layout, kept)[0]


def test_different_masters_for_members_of_a_set_are_made_good_or_found_out() -> None:
    """A registration may lie as well: one member shows the seed that was committed to."""
    layout = histogram()
    inputs = good_inputs(layout)
    committee = Registered(3, 1, layout)
    public = [bytes(box.public_key) for box in committee.boxes]
    name = committee.names[6]
    signer: TestSigner = committee.signers[name]
    made, _ = keyed.register(
        SCOPE,
        name,
        degree=1,
        box_keys=public,
        signer=signer,
        randomness=SeededRandomness(999),
    )
    codes = committee.keys[name].codes.reveal_to("a test")
    octets = bytes(32) + codes[1]
    sealed = client.SealedBox(PrivateKey(bytes(committee.boxes[1])).public_key).encrypt(octets)
    boxes = [committee.said[name].boxes[0], sealed, committee.said[name].boxes[2]]
    plain = msgspec.structs.replace(made, boxes=boxes, signature=b"")
    signature = signer.sign(keyed.DOMAIN, msgspec.msgpack.encode(plain))
    committee.said[name] = msgspec.structs.replace(plain, signature=signature)
    committee.mailboxes[1] = committee.mailbox(2, SESSION)
    committee.fill(inputs)
    outcome = committee.outcome()
    assert outcome.result[2] == {}
    assert outcome.result[0] == in_the_clear(layout, inputs)[0]


def test_registrations_are_signed_for_their_scope_and_need_an_honest_majority() -> None:
    layout = histogram()
    committee = Registered(3, 1, layout)
    said = committee.said["client 3"]
    assert committee.admitted(1, said) is not None
    for changed in (
        {"signature": bytes(64)},
        {"scope": b"tuesday"},
        {"boxes": said.boxes[::-1]},
        {"boxes": said.boxes[:2]},
    ):
        assert committee.admitted(1, msgspec.structs.replace(said, **changed)) is None
    with pytest.raises(InvariantError, match="majority"):
        keyed.register(
            SCOPE,
            "a",
            degree=2,
            box_keys=[bytes(32)] * 4,
            signer=committee.signers["client 3"],
            randomness=SeededRandomness(1),
        )
    assert len(committee.said) == COUNT
