"""What opens behind pads: to its client only, verified, and who bends it is named."""

from typing import Any

import numpy as np
import pytest
from mpc_committee import parties_of, run
from test_mpc_bulk import COUNT, SESSION, VALUES, Committee, histogram, inputs_of
from test_mpc_party import Denying, Liar

from veilgrid.machine import NodeId
from veilgrid.mpc import client
from veilgrid.mpc.bulk import bulk_intake
from veilgrid.mpc.message import Aborted, Finished
from veilgrid.mpc.padded import open_padded, read_padded
from veilgrid.secret import Secret, SeededRandomness


def pads_of(committee: Committee, inputs: np.ndarray, *, n: int = 3) -> list[Secret[int]]:
    """Send everybody's input, and keep what only its sender knows."""
    pads = []
    for row, name in enumerate(committee.names):
        said, pad = client.submit_with_pad(
            SESSION,
            name,
            inputs[row].tolist(),
            degree=committee.degree,
            box_keys=[bytes(box.public_key) for box in committee.boxes],
            signer=committee.signers[name],
            randomness=SeededRandomness(row),
        )
        assert [one.accept(said) for one in committee.mailboxes] == [""] * n
        pads.append(pad)
    return pads


def program_of(committee: Committee) -> Any:
    """Multiply everybody's value with those of all others, and tell each its own products."""

    def of(number: int) -> Any:
        def steps(mpc: Any) -> Any:
            batch = yield from bulk_intake(mpc, committee.mailboxes[number - 1])
            values = batch.number("value")
            rows = mpc.wrap(np.tile(values.data, (COUNT, 1)), values.bound)
            squares = yield from mpc.inner_each(values, rows)
            own = yield from mpc.multiply(squares, values)
            return (yield from open_padded(mpc, batch, own, values.sum()))

        return steps

    of.per_party = True  # type: ignore[attr-defined]
    return of


def right() -> list[int]:
    values = np.clip(VALUES, 2, 20)
    return [int(value) * int((values**2).sum()) for value in values]


@pytest.mark.parametrize(("n", "degree"), [(3, 1), (5, 2)])
def test_each_client_reads_its_own_number_and_nobody_reads_it_without_the_pad(
    n: int, degree: int
) -> None:
    committee = Committee(n, degree, histogram())
    pads = pads_of(committee, inputs_of(histogram(), np.clip(VALUES, 2, 20)), n=n)
    decided = run(dict(parties_of(n, degree, program_of(committee), session=SESSION)))
    told = [decided[name].result for name in sorted(decided)]
    assert {public[0] for public, _ in told} == {int(np.clip(VALUES, 2, 20).sum())}
    padded = [octets for _, octets in told]
    assert [read_padded(padded, row, pad, degree) for row, pad in enumerate(pads)] == right()
    as_told = [read_padded(padded, row, Secret(0), degree) for row in range(COUNT)]
    assert all(abs(value) > 2**60 for value in as_told), "uniform to whoever has no pad"
    assert len({pad.reveal_to("the test") for pad in pads}) == COUNT


def test_a_party_that_bends_what_opens_behind_a_pad_is_named() -> None:
    """In whatever round: what opens is right, or the liar is named when all compute again."""
    outcomes = set()
    inputs = inputs_of(histogram(), np.clip(VALUES, 2, 20))
    for number in range(2, 40, 3):
        committee = Committee(3, 1, histogram())
        pads = pads_of(committee, inputs)
        machines: dict[NodeId, Any] = dict(parties_of(3, 1, program_of(committee), session=SESSION))
        liar: Any = Liar(machines[NodeId("p2")], number % 26 + 2, number, two_faced=False)
        machines[NodeId("p2")] = liar if number < 26 else Denying(liar, machines[NodeId("p2")])
        decided = run(machines)
        for name in (NodeId("p1"), NodeId("p3")):
            outcome = decided[name]
            outcomes.add(type(outcome).__name__)
            if isinstance(outcome, Finished):
                padded = [outcome.result[1]] * 2
                assert [read_padded(padded, k, pad, 1) for k, pad in enumerate(pads)] == right()
            else:
                assert isinstance(outcome, Aborted)
                assert outcome.culprits == ["p2"], f"{number=} {outcome}"
    assert "Aborted" in outcomes


def test_a_wrong_product_of_one_vector_with_many_is_found() -> None:
    """The check folds many inner products with one vector into one claim; one wrong sum shows."""
    committee = Committee(3, 1, histogram())
    pads_of(committee, inputs_of(histogram(), np.clip(VALUES, 2, 20)))
    machines: dict[NodeId, Any] = dict(parties_of(3, 1, program_of(committee), session=SESSION))
    seen = []
    for name in (NodeId("p2"),):
        party = machines[name]
        plainly = party.program

        def bent(mpc: Any, plainly: Any = plainly) -> Any:
            real = mpc.summed

            def summed(field: Any, local: Any) -> Any:
                if len(local) == COUNT and not seen:
                    seen.append(len(local))
                    local = local.copy()
                    local[3, 0] ^= np.uint64(1)
                return (yield from real(field, local))

            mpc.summed = summed
            return (yield from plainly(mpc))

        party.program = bent
    decided = run(machines)
    assert seen == [COUNT]
    for name in (NodeId("p1"), NodeId("p3")):
        assert isinstance(decided[name], Aborted)
        assert decided[name].culprits == ["p2"]
