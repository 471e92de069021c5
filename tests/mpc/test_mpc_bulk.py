"""Many clients of one shape: the check on shares agrees with the check in the clear."""

from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mpc_committee import TestSigner, parties_of, run
from nacl.public import PrivateKey

from veilgrid.errors import InputError
from veilgrid.machine import NodeId
from veilgrid.mpc import client
from veilgrid.mpc.bulk import BulkBatch, BulkMailbox, bulk_intake, plain_batch
from veilgrid.mpc.layout import Equal, Layout, Number, OneHot, Scaled, Spike
from veilgrid.mpc.message import Aborted, Finished, Submission
from veilgrid.mpc.plain import Plain
from veilgrid.secret import Secret, SeededRandomness

SESSION = b"bulk"
COUNT = 9
BINS = 4
WIDTH = 8


def histogram(count: int = COUNT) -> Layout:
    """A value with bounds of each client's own, the bin it is in, and where in the bin."""
    value = Number("value", np.arange(count) % 3, 20 + np.arange(count) % 5)
    edges = np.arange(BINS) * WIDTH
    return Layout(
        (
            value,
            Number("offset", 0, WIDTH - 1),
            OneHot("bin", BINS),
            Scaled("part", "bin", "offset"),
            Spike("step", BINS, "value"),
        ),
        (Equal((("value", 1), ("offset", -1), ("bin", -edges))),),
    )


def inputs_of(layout: Layout, values: np.ndarray) -> np.ndarray:
    places = {"bin": values // WIDTH, "offset": values % WIDTH, "step": values % BINS}
    return layout.encode({"value": values, **places})


def vectors_of(batch: BulkBatch) -> list[Any]:
    """Everything that a batch offers."""
    weights = np.arange(1, COUNT + 1)
    vectors = [batch.column_sums(name, weights) for name in ("bin", "part", "step")]
    by_bin = batch.project("bin", np.arange(BINS))
    return [*vectors, batch.number("value"), by_bin, batch.rows("part")]


class Committee:
    """Mailboxes of all parties, and clients that fill them."""

    def __init__(self, n: int, degree: int, layout: Layout, fallback: Any = None) -> None:
        self.n, self.degree, self.layout = n, degree, layout
        self.names = [f"client {row}" for row in range(COUNT)]
        self.signers = {name: TestSigner(50 + row) for row, name in enumerate(self.names)}
        self.boxes = [PrivateKey(bytes([i]) * 32) for i in range(1, n + 1)]
        enrolled = {
            name: client.Enrolled(signer.verify_key) for name, signer in self.signers.items()
        }
        self.mailboxes = [
            BulkMailbox(
                i, n, degree, SESSION, enrolled, Secret(bytes(self.boxes[i - 1])), layout, fallback
            )
            for i in range(1, n + 1)
        ]

    def submission(self, row: int, elements: np.ndarray, **changes: Any) -> Submission:
        name = self.names[row]
        made = client.submit(
            SESSION,
            name,
            elements.tolist(),
            degree=self.degree,
            box_keys=[bytes(box.public_key) for box in self.boxes],
            signer=self.signers[name],
            randomness=SeededRandomness(row),
        )
        made = msgspec.structs.replace(made, signature=b"", **changes)
        signature = self.signers[name].sign(client.DOMAIN, msgspec.msgpack.encode(made))
        return msgspec.structs.replace(made, signature=signature)

    def fill(self, inputs: np.ndarray, skip: tuple[int, ...] = ()) -> None:
        for row in range(COUNT):
            if row not in skip:
                said = self.submission(row, inputs[row])
                assert [one.accept(said) for one in self.mailboxes] == [""] * self.n

    def program(self, count_min: int = 1) -> Any:
        def of(number: int) -> Any:
            def steps(mpc: Any) -> Any:
                batch = yield from bulk_intake(mpc, self.mailboxes[number - 1], count_min)
                opened = []
                for vector in vectors_of(batch):
                    numbers = yield from mpc.open(vector)
                    opened += [numbers]
                return opened, batch.clients, batch.flags, batch.is_replaced.tolist()

            return steps

        of.per_party = True  # type: ignore[attr-defined]
        return of

    def outcome(self, count_min: int = 1) -> Any:
        decided = run(
            dict(parties_of(self.n, self.degree, self.program(count_min), session=SESSION))
        )
        first = decided[NodeId("p1")]
        if isinstance(first, Finished):
            assert all(outcome.result == first.result for outcome in decided.values())
        return first


def in_the_clear(layout: Layout, inputs: np.ndarray, fallback: Any = None) -> Any:
    mpc = Plain()
    batch = plain_batch(mpc, layout, inputs, [f"client {row}" for row in range(COUNT)], fallback)
    opened = [mpc.run(mpc.open(vector)) for vector in vectors_of(batch)]
    return opened, batch.clients, batch.flags, batch.is_replaced.tolist()


VALUES = np.array([0, 3, 8, 15, 20, 9, 21, 22, 17])


@pytest.mark.parametrize(("n", "degree"), [(3, 1), (5, 2)])
def test_shares_of_valid_inputs_equal_the_clear(n: int, degree: int) -> None:
    layout = histogram()
    inputs = inputs_of(layout, np.clip(VALUES, 2, 20))
    assert layout.is_valid(inputs).all()
    committee = Committee(n, degree, layout)
    committee.fill(inputs)
    outcome = committee.outcome()
    assert outcome.result == in_the_clear(layout, inputs)
    assert outcome.result[2] == {}


def broken(layout: Layout) -> dict[str, np.ndarray]:
    """One input for each way to cheat; every one starts from a valid input."""
    good = inputs_of(layout, np.clip(VALUES, 2, 20))[5].copy()
    start = {part.name: layout.start(part.name) for part in layout.parts}

    def changed(**elements: dict[int, int]) -> np.ndarray:
        out = good.copy()
        for name, places in elements.items():
            for place, value in places.items():
                out[start[name] + place] = value
        return out

    return {
        "bit of two": changed(value={1: 2}),
        "two bins": changed(bin={0: 1}),
        "no bin": changed(bin={1: 0}, part={1: 0}),
        "bins that cancel": changed(bin={0: 2, 2: -2}),
        "part in another bin": changed(part={1: 0, 2: 1}),
        "part too large": changed(part={1: 5}),
        "two steps": changed(step={1: 4, 0: 5}),
        "step too high": changed(step={1: 10}),
        "step and its opposite": changed(step={0: 4, 2: -4}),
        "another bin than the value's": changed(bin={1: 0, 2: 1}, part={1: 0, 2: 1}),
        "million": inputs_of_number(layout, good, 1_000_000),
    }


def inputs_of_number(layout: Layout, good: np.ndarray, value: int) -> np.ndarray:
    out = good.copy()
    start = layout.start("value")
    rows = np.full(1, 5)
    encoded = layout.encode(
        {name: np.array([value if name == "value" else 1]) for name in ("value", "offset")}
        | {"bin": np.array([1]), "step": np.array([1])},
        rows,
    )
    size = layout.part("value").size  # type: ignore[union-attr]
    out[start : start + size] = encoded[0, start : start + size]
    return out


@pytest.mark.parametrize("how", list(broken(histogram())))
def test_every_way_to_cheat_is_named_and_moves_nothing(how: str) -> None:
    """One bad device neither stops the round nor is counted; the others all count."""
    layout = histogram()
    inputs = inputs_of(layout, np.clip(VALUES, 2, 20))
    inputs[5] = broken(layout)[how]
    committee = Committee(3, 1, layout)
    committee.fill(inputs)
    outcome = committee.outcome()
    assert outcome.result[2] == {"client 5": "invalid"}
    assert outcome.result == in_the_clear(layout, inputs)


def test_fallbacks_stand_in_for_the_missing_and_the_invalid() -> None:
    layout = histogram()
    fallback = inputs_of(layout, np.full(COUNT, 10))
    inputs = inputs_of(layout, np.clip(VALUES, 2, 20))
    inputs[2, layout.start("bin")] = 7
    committee = Committee(3, 1, layout, fallback)
    committee.fill(inputs, skip=(4,))
    outcome = committee.outcome()
    assert outcome.result[2] == {"client 2": "invalid", "client 4": "missing"}
    assert [row for row, is_replaced in enumerate(outcome.result[3]) if is_replaced] == [2, 4]
    stand_in = inputs.copy()
    stand_in[[2, 4]] = fallback[[2, 4]]
    assert outcome.result[0] == in_the_clear(layout, stand_in)[0]


def test_what_reached_some_parties_only_is_passed_on_or_left_out() -> None:
    """A client that tells one party only, or gives one rubbish, gains nothing."""
    layout = histogram()
    inputs = inputs_of(layout, np.clip(VALUES, 2, 20))
    committee = Committee(3, 1, layout)
    committee.fill(inputs, skip=(1, 2, 3, 4))
    for row, reached in ((1, (1, 3)), (2, (2,))):
        said = committee.submission(row, inputs[row])
        assert [committee.mailboxes[i - 1].accept(said) for i in reached] == [""] * len(reached)
    good = committee.submission(3, inputs[3])
    said = committee.submission(3, inputs[3], boxes=[good.boxes[0], bytes(80), good.boxes[2]])
    assert [one.accept(said) for one in committee.mailboxes] == [""] * 3
    said = committee.submission(4, inputs[4], boxes=[bytes(80)] * 3)
    assert [one.accept(said) for one in committee.mailboxes] == [""] * 3
    outcome = committee.outcome()
    assert outcome.result[2] == {"client 2": "missing", "client 4": "unreadable"}
    kept = inputs.copy()
    kept[[2, 4]] = -1
    assert outcome.result[0] == in_the_clear(layout, kept)[0]


@pytest.mark.parametrize("is_bent_later", [False, True])
def test_a_seed_that_no_honest_party_can_read_is_found_whoever_says_so_too(
    is_bent_later: bool,
) -> None:
    """A party outside the set that claims not to read it makes all tables alike.

    Then the input has no shares, and nothing that it goes into could be computed again.
    """
    from test_mpc_party import Liar

    layout = histogram()
    inputs = inputs_of(layout, np.clip(VALUES, 2, 20))
    committee = Committee(3, 1, layout)
    committee.fill(inputs, skip=(0,))
    good = committee.submission(0, inputs[0])
    said = committee.submission(0, inputs[0], commitments=[*good.commitments[:2], bytes(32)])
    assert [one.accept(said) for one in committee.mailboxes] == [""] * 3
    received = committee.mailboxes[0].received
    table = received.roster()
    table[4] |= np.uint64(1 << 2)  # The third set holds the second and the third party.
    received.roster = lambda: table  # type: ignore[method-assign]
    machines: dict[NodeId, Any] = dict(parties_of(3, 1, committee.program(), session=SESSION))
    if is_bent_later:
        machines[NodeId("p1")] = Liar(machines[NodeId("p1")], 12, 1, two_faced=False)
    decided = run(machines)
    for name in (NodeId("p2"), NodeId("p3")):
        outcome = decided[name]
        if is_bent_later:
            assert isinstance(outcome, Aborted)
            assert outcome.culprits == ["p1"]
            continue
        assert outcome.result[2] == {"client 0": "unreadable"}
        kept = inputs.copy()
        kept[0] = -1
        assert outcome.result[0] == in_the_clear(layout, kept)[0]


def test_replayed_forged_and_misshapen_messages_are_refused() -> None:
    layout = histogram()
    committee = Committee(3, 1, layout)
    good = committee.submission(0, inputs_of(layout, np.full(COUNT, 10))[0])
    mailbox = committee.mailboxes[0]
    assert mailbox.accept(msgspec.structs.replace(good, signature=bytes(64))) == "forged"
    assert mailbox.accept(msgspec.structs.replace(good, session=b"old")) == "other session"
    assert mailbox.accept(msgspec.structs.replace(good, client="eve")) == "unknown client"
    short = msgspec.structs.replace(good, correction=good.correction[16:])
    assert mailbox.accept(short) == "wrong shape"
    assert mailbox.accept(good) == ""
    assert mailbox.accept(good) == "repeated"
    assert mailbox.received[good.client].submission == good


def test_small_batches_open_nothing() -> None:
    layout = histogram()
    committee = Committee(3, 1, layout)
    committee.fill(inputs_of(layout, np.full(COUNT, 10)), skip=(0, 1, 2))
    outcome = committee.outcome(count_min=7)
    assert isinstance(outcome, Aborted)
    assert "only 6 of 9" in outcome.reason


def test_a_party_that_bends_a_share_is_named_and_no_client_is() -> None:
    from test_mpc_party import Denying, Liar

    layout = histogram()
    inputs = inputs_of(layout, np.clip(VALUES, 2, 20))
    inputs[5, 0] = 3
    outcomes = set()
    for number in range(2, 24, 3):
        committee = Committee(3, 1, layout)
        committee.fill(inputs)
        machines: dict[NodeId, Any] = dict(parties_of(3, 1, committee.program(), session=SESSION))
        liar: Any = Liar(machines[NodeId("p2")], number % 12 + 2, number, two_faced=False)
        machines[NodeId("p2")] = liar if number < 15 else Denying(liar, machines[NodeId("p2")])
        decided = run(machines)
        for name in (NodeId("p1"), NodeId("p3")):
            outcome = decided[name]
            outcomes.add(type(outcome).__name__)
            if isinstance(outcome, Finished):
                assert outcome.result == in_the_clear(layout, inputs)
            else:
                assert outcome.culprits == ["p2"], f"{number=} {outcome}"
    assert "Aborted" in outcomes


@settings(max_examples=60, deadline=None)
@given(lower=st.integers(-1000, 1000), extent=st.integers(0, 5000), data=st.data())
def test_bits_reach_exactly_the_range(lower: int, extent: int, data: Any) -> None:
    part = Number("x", lower, lower + extent)
    layout = Layout((part,))
    bits = data.draw(st.lists(st.integers(0, 1), min_size=part.size, max_size=part.size))
    assert lower <= layout.numbers(np.array([bits]), "x")[0] <= lower + extent
    value = data.draw(st.integers(lower, lower + extent))
    sent = layout.encode({"x": np.array([value])})
    assert layout.is_valid(sent).all()
    assert layout.numbers(sent, "x")[0] == value
    for outside in (lower - 1, lower + extent + 1, 10**9):
        assert not layout.is_valid(layout.encode({"x": np.array([outside])})).any()


def test_crossing_bounds_are_a_finding_that_names_the_client() -> None:
    with pytest.raises(InputError, match="client 1"):
        Number("x", np.array([0, 5]), np.array([1, 4]))


@pytest.mark.parametrize("part", ["bin", "step"])
def test_a_vector_of_zeros_is_no_unit_vector_and_no_spike(part: str) -> None:
    """Without it a device would count in the weight and nowhere in the histogram."""
    layout = Layout((Number("q", 0, 20), OneHot("bin", BINS), Spike("step", BINS, "q")))
    places = np.arange(COUNT) % BINS
    inputs = layout.encode({"q": np.full(COUNT, 7), "bin": places, "step": places})
    start = layout.start(part)
    inputs[4, start : start + BINS] = 0
    committee = Committee(3, 1, layout)
    committee.fill(inputs)

    def program(number: int) -> Any:
        def steps(mpc: Any) -> Any:
            batch = yield from bulk_intake(mpc, committee.mailboxes[number - 1])
            return batch.flags

        return steps

    program.per_party = True  # type: ignore[attr-defined]
    decided = run(dict(parties_of(3, 1, program, session=SESSION)))
    assert decided[NodeId("p1")].result == {"client 4": "invalid"}
    assert layout.is_valid(inputs).sum() == COUNT - 1
