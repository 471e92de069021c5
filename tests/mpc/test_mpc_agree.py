"""Parties compare what they heard before anything opens, and do not where they know it already."""

from typing import Any

import numpy as np
import pytest
from mpc_committee import names_of, parties_of, run
from test_mpc_party import Liar

from veilgrid.machine import Machine, NodeId
from veilgrid.mpc._round import Round, together
from veilgrid.mpc.field import BINARY_FIELD, PRIME_FIELD
from veilgrid.mpc.message import Aborted, Finished
from veilgrid.mpc.party import Party
from veilgrid.mpc.verify import _LAST, _width

SQUARES = [25, 9]
FOUND = [[5, -3], [0, 1], SQUARES, [625, 81]]


def opening(mpc: Any) -> Any:
    """Open what nobody multiplied, signs, squares, and products of these."""
    x = mpc.constant([5, -3])
    known = yield from mpc.open(x)
    squares = yield from mpc.multiply(x, x)
    signs = yield from mpc.open_negative(squares - 10)
    told = yield from mpc.open(squares)
    return [known, signs, told, (yield from mpc.open((yield from mpc.multiply(squares, squares))))]


def labels_of(party: Party) -> list[list[str]]:
    return [
        [label for label, _ in spoken.parts(party.n)] for spoken in party.state.spoken if spoken
    ]


def played(n: int, degree: int, program: Any) -> tuple[Any, list[list[str]]]:
    machines = parties_of(n, degree, program)
    outcome = run(dict(machines))[NodeId("p1")]
    assert isinstance(outcome, Finished), outcome
    return outcome.result, labels_of(machines[NodeId("p1")])


@pytest.mark.parametrize(("n", "degree"), [(3, 1), (5, 2)])
def test_what_was_multiplied_is_compared_before_it_opens_and_shares_are_not_again(
    n: int, degree: int
) -> None:
    """Else somebody could tell two parties different things, and they would open other results."""
    found, labels = played(n, degree, opening)
    assert found == FOUND
    opened = [k for k, one in enumerate(labels) if one[-1] in ("output", "masked bits")]
    compared = [k for k, one in enumerate(labels) if "agree" in one]
    # Constants, signs and products of squares are compared; squares are verified with their signs.
    assert len(compared) == 3
    assert opened == [compared[0] + 1, compared[1] + 1, compared[1] + 2, compared[2] + 1]
    for place in compared[1:]:
        assert any(label.startswith("check") for label in labels[place])


def test_words_that_are_no_shares_are_compared() -> None:
    """Whatever is said to all but shares, two parties may have heard differently."""

    def telling(mpc: Any) -> Any:
        known = yield from mpc.open(mpc.constant([1]))
        heard = yield Round(np.array([7], np.uint64), label="told")
        yield from mpc.coin()
        again = yield from mpc.open(mpc.constant([len(heard)]))
        return [known, again]

    found, labels = played(3, 1, telling)
    assert found == [[1], [3]]
    assert sum("agree" in one for one in labels) == 2


def test_products_under_way_beside_an_opening_are_compared() -> None:
    def beside(mpc: Any) -> Any:
        x = mpc.constant([5])
        signs, product = yield from together(mpc.open_negative(x), _powers(mpc, x, 40))
        return [signs, (yield from mpc.open(product))]

    def _powers(mpc: Any, x: Any, count: int) -> Any:
        out = x
        for _ in range(count):
            out = (yield from mpc.multiply(out, mpc.constant([1]))).claim(5)
        return out

    found, labels = played(3, 1, beside)
    assert found == [[0], [5]]
    last = max(k for k, one in enumerate(labels) if "agree" in one)
    assert last > max(k for k, one in enumerate(labels) if "masked bits" in one)


@pytest.mark.parametrize(("n", "degree"), [(3, 1), (5, 2)])
def test_who_shows_different_shares_after_the_comparison_is_named(n: int, degree: int) -> None:
    """The round that is saved must not be one in which a liar would have been found out."""
    _, labels = played(n, degree, opening)
    first = next(k for k, one in enumerate(labels) if "agree" in one)
    rounds = [k for k in range(first, len(labels)) if labels[k][-1] in ("output", "masked bits")]
    assert len(rounds) == 4
    for number in rounds[:-1]:
        for liar in names_of(n)[:2]:
            machines: dict[NodeId, Machine] = dict(parties_of(n, degree, opening))
            party = machines[liar]
            assert isinstance(party, Party)
            machines[liar] = Liar(party, number, number, two_faced=True)
            decided = run(machines)
            for name in machines:
                if name != liar:
                    assert isinstance(decided[name], Aborted), (number, name, decided[name])
                    assert decided[name].culprits == [liar]


@pytest.mark.parametrize("field", [PRIME_FIELD, BINARY_FIELD], ids=lambda field: field.name)
def test_the_folds_of_a_check_keep_their_error_bound(field: Any) -> None:
    """[mpc 6.4] counts twice the width less one for each fold; gates begin with one of eight."""
    lengths = [*range(_LAST, 4000), *range(4000, 4_300_000, 9973)]
    worst = 0
    for length in lengths:
        degrees, left = 2 * (8 - 1), length
        while left > _LAST:
            width = _width(field, left)
            assert 2 <= width <= _LAST
            degrees, left = degrees + 2 * (width - 1), -(-left // width)
        worst = max(worst, degrees + 2 * left)
    assert 100 < worst < 2**8
