"""Degrees beyond half: when is a wrong share noticed, and when is its sender named [mpc 8.4]?"""

import random
from collections.abc import Callable
from typing import Any

import pytest
from mpc_committee import names_of, parties_of, run
from test_mpc_party import Liar

from veilgrid.errors import InputError
from veilgrid.machine import Machine, NodeId
from veilgrid.mpc import policy
from veilgrid.mpc.engine import Engine
from veilgrid.mpc.field import PRIME_FIELD, encode
from veilgrid.mpc.message import Aborted, Finished

RIGHT = [5, 7]
ROUND_COUNT = 4  # two for keys, one to compare what was heard, one to open
BEYOND_HALF = [(4, 2), (5, 3), (6, 3), (6, 4), (7, 4), (7, 5)]


def linear(mpc: Engine) -> Any:
    hidden = mpc.wrap(mpc.uniform(2), 2**100)
    return (yield from mpc.open(hidden - hidden + mpc.constant(RIGHT)))


@pytest.mark.parametrize("two_faced", [False, True])
@pytest.mark.parametrize(("n", "degree"), BEYOND_HALF)
def test_one_liar_is_named_in_any_round_at_any_degree(n: int, degree: int, two_faced: bool) -> None:
    """Error correction names nobody here; computing the summands again does."""
    for number in range(ROUND_COUNT):
        machines: dict[NodeId, Machine] = dict(parties_of(n, degree, linear))
        liar = NodeId(f"p{number % n + 1}")
        machines[liar] = Liar(machines[liar], number, number, two_faced=two_faced)  # type: ignore[arg-type]
        decided = run(machines)
        for name in set(machines) - {liar}:
            outcome = decided[name]
            if isinstance(outcome, Finished):
                # Only the one that got the true share of the last opening.
                assert two_faced
                assert number == ROUND_COUNT - 1
                assert outcome.result == RIGHT
            else:
                assert (outcome.kind, outcome.culprits) == ("cheated", [str(liar)])


@pytest.mark.parametrize(("n", "degree"), [(6, 3), (7, 4)])
def test_as_many_liars_as_leave_an_honest_member_in_each_set_are_named(n: int, degree: int) -> None:
    """``n - degree - 1`` of them: no set of ``n - degree`` parties is theirs alone."""
    rng = random.Random(n)
    for number in (2, 3):
        machines: dict[NodeId, Machine] = dict(parties_of(n, degree, linear))
        liars = set(rng.sample(names_of(n), n - degree - 1))
        for name in liars:
            machines[name] = Liar(machines[name], number, rng.randrange(99), two_faced=False)  # type: ignore[arg-type]
        decided = run(machines)
        for name in set(machines) - liars:
            assert isinstance(decided[name], Aborted)
            named = {NodeId(one) for one in decided[name].culprits}
            assert named, "at least the first one that is proved"
            assert named <= liars


def shifting(members: tuple[int, ...]) -> Callable[[int], Any]:
    """Return programs in which all members of one set add one to its summand of the result."""

    def of(number: int) -> Any:
        def program(mpc: Engine) -> Any:
            hidden = mpc.wrap(mpc.uniform(2), 2**100)
            result = hidden - hidden + mpc.constant(RIGHT)
            if number in members:
                more = mpc.source.known(PRIME_FIELD, members, encode([1, 1]))
                result = mpc.wrap(PRIME_FIELD.add(result.data, more), result.bound + 1)
            return (yield from mpc.open(result))

        return program

    of.per_party = True  # type: ignore[attr-defined]
    return of


@pytest.mark.parametrize(("n", "degree"), [(4, 2), (5, 3), (7, 4)])
def test_one_more_could_shift_a_result_which_is_why_the_limit_is_stated(
    n: int, degree: int
) -> None:
    """All members of one set together are not noticed: privacy holds there, correctness not."""
    whole = tuple(range(1, n - degree + 1))
    decided = run(dict(parties_of(n, degree, shifting(whole))))
    assert {tuple(one.result) for one in decided.values()} == {(6, 8)}
    decided = run(dict(parties_of(n, degree, shifting_alone(whole))))
    for one in decided.values():
        assert isinstance(one, Aborted)
        assert set(one.culprits) < {f"p{number}" for number in whole}


def shifting_alone(members: tuple[int, ...]) -> Callable[[int], Any]:
    """Return the same with one honest member left in the set."""
    usual = shifting(members)

    def of(number: int) -> Any:
        return linear if number == members[-1] else usual(number)

    of.per_party = True  # type: ignore[attr-defined]
    return of


@pytest.mark.parametrize("n", range(3, 8))
def test_no_function_runs_where_a_wrong_share_would_go_unnoticed(n: int) -> None:
    """With degree ``n - 1`` every set of shares fits some polynomial."""
    policy.check(n, max(n - 2, 1), "sum", checked_inputs=False)
    with pytest.raises(InputError, match=f"use degree {n - 2} or less"):
        policy.check(n, n - 1, "sum", checked_inputs=False)
