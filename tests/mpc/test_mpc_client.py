"""Clients: valid inputs count, others are flagged, and no frame shows any of them."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mpc_committee import TestSigner, names_of, parties_of, run
from nacl.public import PrivateKey

from veilgrid.errors import InputError
from veilgrid.machine import Effect, Event, NodeId, Received, Send, TimerFired
from veilgrid.mpc import client, form, message
from veilgrid.mpc._shares import concatenate
from veilgrid.mpc.aggregate import Sender
from veilgrid.mpc.intake import intake
from veilgrid.mpc.message import Aborted, Finished, Output
from veilgrid.secret import Secret, SeededRandomness
from veilgrid.sim import NoSecretOnWire, World

SESSION = b"clients"


class Round:
    """A committee and its clients, before anything runs."""

    def __init__(self, n: int, degree: int, forms: dict[str, form.Form], **more: Any) -> None:
        self.n, self.degree = n, degree
        self.boxes = [PrivateKey(bytes([i]) * 32) for i in range(1, n + 1)]
        self.own = {name: PrivateKey(name.encode().ljust(32, b"k")) for name in forms}
        self.signers = {name: TestSigner(100 + k) for k, name in enumerate(forms)}
        self.enrolled = {
            name: client.Enrolled(
                self.signers[name].verify_key,
                one,
                more.get("fallback"),
                bytes(self.own[name].public_key),
            )
            for name, one in forms.items()
        }
        self.mailboxes = [
            client.Mailbox(i, n, degree, SESSION, self.enrolled, Secret(bytes(box)))
            for i, box in enumerate(self.boxes, 1)
        ]

    def submission(self, name: str, bits: list[int], seed: int = 1) -> message.Submission:
        return client.submit(
            SESSION,
            name,
            bits,
            degree=self.degree,
            box_keys=[bytes(box.public_key) for box in self.boxes],
            signer=self.signers[name],
            randomness=SeededRandomness(seed),
        )

    def signed_again(self, submission: message.Submission, **changes: Any) -> message.Submission:
        changed = msgspec.structs.replace(submission, signature=b"", **changes)
        payload = msgspec.msgpack.encode(changed)
        signature = self.signers[submission.client].sign(client.DOMAIN, payload)
        return msgspec.structs.replace(changed, signature=signature)

    def accept(self, submission: message.Submission, parties: Any = None) -> list[str]:
        chosen = range(1, self.n + 1) if parties is None else parties
        return [self.mailboxes[i - 1].accept(submission) for i in chosen]

    def outcome(self, count_min: int = 1) -> Any:
        def program(number: int) -> Any:
            def steps(mpc: Any) -> Any:
                batch = yield from intake(mpc, self.mailboxes[number - 1], count_min)
                opened = yield from mpc.open(concatenate(batch.values.values()))
                return [batch.clients, opened, batch.flags, list(batch.replaced)]

            return steps

        program.per_party = True  # type: ignore[attr-defined]
        decided = run(dict(parties_of(self.n, self.degree, program, session=SESSION)))
        first = decided[NodeId("p1")]
        if isinstance(first, Finished):
            assert all(outcome.result == first.result for outcome in decided.values())
        return first


def numbers(count: int) -> dict[str, form.Form]:
    return {f"c{k}": form.number(-10, 10 + k) for k in range(count)}


@given(lower=st.integers(-1000, 1000), extent=st.integers(0, 5000), data=st.data())
def test_bits_reach_exactly_the_range(lower: int, extent: int, data: Any) -> None:
    """Whatever valid bits a client sends, its number is in range; every number can be sent."""
    one = form.number(lower, lower + extent)
    bits = data.draw(st.lists(st.integers(0, 1), min_size=one.bit_count, max_size=one.bit_count))
    assert lower <= one.values(bits)[0] <= lower + extent
    value = data.draw(st.integers(lower, lower + extent))
    sent = form.number_bits(one, value)
    assert set(sent) <= {0, 1}
    assert one.values(sent) == [value]


def test_out_of_range_number_has_no_valid_bits() -> None:
    one = form.number(0, 10)
    assert one.values(form.number_bits(one, 99)) == [99]
    assert set(form.number_bits(one, 99)) - {0, 1}
    with pytest.raises(InputError, match="above"):
        form.number(3, 2)


@pytest.mark.parametrize(("n", "degree"), [(3, 1), (5, 2), (4, 1)])
def test_invalid_and_missing_inputs_are_flagged_and_the_others_count(n: int, degree: int) -> None:
    """One bad device neither stops the round nor moves its result."""
    sent = Round(n, degree, numbers(6))
    for k, name in enumerate(sent.enrolled):
        value = {2: 1000, 3: -11}.get(k, k)
        if k != 4:
            bits = form.number_bits(sent.enrolled[name].form, value)
            assert sent.accept(sent.submission(name, bits, k)) == [""] * n
    outcome = sent.outcome()
    assert outcome.result[0] == ["c0", "c1", "c5"]
    assert outcome.result[1] == [0, 1, 5]
    assert outcome.result[2] == {"c2": "invalid", "c3": "invalid", "c4": "missing"}


def test_fallback_stands_in_and_is_flagged() -> None:
    sent = Round(3, 1, numbers(3), fallback=(7,))
    sent.accept(sent.submission("c0", form.number_bits(sent.enrolled["c0"].form, 3)))
    outcome = sent.outcome()
    assert outcome.result[1] == [3, 7, 7]
    assert outcome.result[3] == ["c1", "c2"]


def test_one_hot_and_rising_curves_are_checked() -> None:
    forms = {
        "good": form.one_hot(4),
        "none": form.one_hot(4),
        "two": form.one_hot(4),
        "cancel": form.one_hot(4),
        "curve": form.monotone(4, 5),
        "falls": form.monotone(4, 5),
    }
    sent = Round(3, 1, forms)
    curve = form.monotone_bits(forms["curve"], [1, 1, 6, 8])
    falls = form.monotone_bits(forms["falls"], [3, 2, 6, 8])
    vectors = {
        "good": [0, 0, 1, 0],
        "none": [0, 0, 0, 0],
        "two": [1, 0, 1, 0],
        "cancel": [2, -1, 0, 0],
        "curve": curve,
        "falls": falls,
    }
    for name, bits in vectors.items():
        sent.accept(sent.submission(name, bits))
    outcome = sent.outcome()
    assert outcome.result[0] == ["curve", "good"]
    assert outcome.result[1] == [1, 1, 6, 8, 0, 0, 1, 0]
    assert set(outcome.result[2].values()) == {"invalid"}


def test_repeated_foreign_and_forged_messages_are_refused() -> None:
    sent = Round(3, 1, numbers(2))
    submission = sent.submission("c0", [0] * sent.enrolled["c0"].form.bit_count)
    assert sent.accept(submission) == [""] * 3
    assert sent.accept(submission) == ["repeated"] * 3
    other = sent.submission("c1", [0] * sent.enrolled["c1"].form.bit_count)
    assert sent.accept(sent.signed_again(other, session=b"yesterday")) == ["other session"] * 3
    assert sent.accept(msgspec.structs.replace(other, signature=bytes(64))) == ["forged"] * 3
    stolen = msgspec.structs.replace(submission, client="c1")
    assert set(sent.accept(stolen)) <= {"forged", "wrong shape"}
    assert sent.accept(msgspec.structs.replace(other, client="eve")) == ["unknown client"] * 3
    short = sent.signed_again(other, correction=other.correction[:-16])
    assert sent.accept(short) == ["wrong shape"] * 3


def test_submission_that_reached_enough_parties_is_passed_on() -> None:
    sent = Round(3, 1, numbers(3))
    for k, name in enumerate(sent.enrolled):
        bits = form.number_bits(sent.enrolled[name].form, k)
        sent.accept(sent.submission(name, bits), [(1, 2, 3), (1, 3), (2,)][k])
    outcome = sent.outcome()
    assert outcome.result[0] == ["c0", "c1"]
    assert outcome.result[2] == {"c2": "missing"}


def test_client_with_two_stories_is_left_out() -> None:
    sent = Round(3, 1, numbers(2))
    size = sent.enrolled["c0"].form.bit_count
    sent.accept(sent.submission("c0", [0] * size, 1), [1])
    sent.accept(sent.submission("c0", [1] * size, 2), [2])
    sent.accept(sent.submission("c0", [0, 1] * (size // 2) + [0] * (size % 2), 3), [3])
    sent.accept(sent.submission("c1", [0] * sent.enrolled["c1"].form.bit_count))
    assert sent.outcome().result[2] == {"c0": "contradictory"}


def test_unreadable_share_is_shown_by_another_member_of_its_set() -> None:
    """A client that sends one party rubbish gains nothing, and neither does a party's lie."""
    sent = Round(3, 1, numbers(2))
    good = sent.submission("c0", form.number_bits(sent.enrolled["c0"].form, 5))
    rubbish = [good.boxes[0], bytes(len(good.boxes[1])), good.boxes[2]]
    sent.accept(sent.signed_again(good, boxes=rubbish))
    other = sent.submission("c1", form.number_bits(sent.enrolled["c1"].form, 6))
    all_rubbish = [bytes(len(box)) for box in other.boxes]
    sent.accept(sent.signed_again(other, boxes=all_rubbish))
    outcome = sent.outcome()
    assert outcome.result[:2] == [["c0"], [5]]
    assert outcome.result[2] == {"c1": "unreadable"}


def test_small_batches_open_nothing() -> None:
    sent = Round(3, 1, numbers(3))
    sent.accept(sent.submission("c0", form.number_bits(sent.enrolled["c0"].form, 5)))
    outcome = sent.outcome(count_min=2)
    assert isinstance(outcome, Aborted)
    assert outcome.kind == "refused"
    assert "only 1 of 3" in outcome.reason


def test_party_that_changes_its_share_of_an_input_is_named() -> None:
    """A party cannot blame a client, nor bend its input."""
    from test_mpc_party import Denying, Liar

    sent = Round(3, 1, numbers(3))
    for name, one in sent.enrolled.items():
        sent.accept(sent.submission(name, form.number_bits(one.form, 4)))

    def program(number: int) -> Any:
        def steps(mpc: Any) -> Any:
            batch = yield from intake(mpc, sent.mailboxes[number - 1], 1)
            return (yield from mpc.open(concatenate(batch.values.values())))

        return steps

    program.per_party = True  # type: ignore[attr-defined]
    for number in range(2, 28):
        machines: dict[NodeId, Any] = dict(parties_of(3, 1, program, session=SESSION))
        liar: Any = Liar(machines[NodeId("p2")], number % 13 + 2, number, two_faced=False)
        machines[NodeId("p2")] = liar if number < 15 else Denying(liar, machines[NodeId("p2")])
        decided = run(machines)
        for name in (NodeId("p1"), NodeId("p3")):
            outcome = decided[name]
            if isinstance(outcome, Finished):
                assert outcome.result[0] == 4
            else:
                assert outcome.culprits == ["p2"], f"{number=} {outcome}"


class Reader:
    """A client that keeps the sealed shares it gets."""

    def __init__(self) -> None:
        self.outputs: dict[NodeId, Output] = {}

    def handle(self, event: Event) -> list[Effect]:
        match event:
            case Received(sender, Output() as output):
                self.outputs[sender] = output
        return []


def test_result_opens_to_one_client_only_and_no_frame_shows_an_input() -> None:
    """Canaries: a value of 39 bits is planted and every frame of the run is searched."""
    secret = 0x5A3C96E1B7
    forms = {"c0": form.number(0, 2**40 - 1), "c1": form.number(0, 2**40 - 1)}
    sent = Round(3, 1, forms)

    def program(number: int) -> Any:
        def steps(mpc: Any) -> Any:
            batch = yield from intake(mpc, sent.mailboxes[number - 1], 2)
            square = yield from mpc.multiply(batch.values["c0"], batch.values["c1"])
            yield from mpc.deliver("c1", "product", square)
            yield from mpc.keep("input", batch.values["c0"])
            return "delivered"

        return steps

    program.per_party = True  # type: ignore[attr-defined]
    machines: dict[NodeId, Any] = {}
    for number, (name, party) in enumerate(parties_of(3, 1, program, session=SESSION).items(), 1):
        party._mailbox, party._intake_ns = sent.mailboxes[number - 1], 10**12
        machines[name] = party
    reader = Reader()
    values = {"c0": secret, "c1": 3}
    for name, value in values.items():
        submission = sent.submission(name, form.number_bits(forms[name], value), len(name))
        machines[NodeId(f"send {name}")] = Sender(names_of(3), submission)
    machines[NodeId("c1")] = reader
    checker = NoSecretOnWire({"input": secret, "product": 3 * secret})
    builds = {name: (lambda _, one=machine: one) for name, machine in machines.items()}
    world = World(builds, 1, messages=message.Message, checkers=[checker])
    world.run(100_000)
    assert checker.frame_count > 100
    opened = [reader.outputs[name] for name in names_of(3)]
    values_read, cheaters = client.read_output(opened, 1, Secret(bytes(sent.own["c1"])))
    assert values_read == [3 * secret]
    assert cheaters == ()
    assert "input" in machines[NodeId("p1")].state.engine.kept
    forged = [*opened[:2], msgspec.structs.replace(opened[2], box=opened[1].box)]
    with pytest.raises(InputError, match="contradict"):
        client.read_output(forged, 1, Secret(bytes(sent.own["c1"])))


def test_sender_sends_once_to_each_party() -> None:
    sent = Round(3, 1, numbers(1))
    submission = sent.submission("c0", [0] * sent.enrolled["c0"].form.bit_count)
    machine = Sender(names_of(3), submission)
    effects = machine.handle(TimerFired("start"))
    assert [effect.to for effect in effects if isinstance(effect, Send)] == list(names_of(3))
    assert machine.handle(TimerFired("other")) == []
