"""An element out of range is refused, whoever it hides among; honest extremes are not."""

import random
import time
from typing import Any

import numpy as np
import pytest
from mpc_committee import parties_of, run

from veilgrid.mpc import Engine, Finished, Steps
from veilgrid.mpc.bounded import DRAWS, Part, not_negative, out_of_range
from veilgrid.mpc.field import PRIME, PRIME_FIELD, encode


def vector(rng: random.Random, count: int) -> list[int]:
    """Draw honest elements, extremes included: half with each of two bounds."""
    half = count // 2
    low = [rng.choice((-(2**38), 2**38, rng.randrange(-(2**38), 2**38))) for _ in range(half)]
    high = [rng.choice((-(2**48), 2**48, rng.randrange(-(2**48), 2**48))) for _ in range(half)]
    return [*low, *high]


def named(vectors: dict[str, list[int]], n: int = 3, degree: int = 1, seed: int = 1) -> list[str]:
    def program(mpc: Engine) -> Steps[dict[str, Any]]:
        parts = {
            name: Part(
                mpc.source.constant(PRIME_FIELD.vector([v % PRIME for v in values])),
                [(len(values) // 2, 2**38), (len(values) // 2, 2**48)],
            )
            for name, values in vectors.items()
        }
        return {"named": (yield from out_of_range(mpc, parts))}

    outcomes = run(parties_of(n, degree, program, seed=seed))
    assert all(isinstance(one, Finished) for one in outcomes.values()), outcomes
    results = [one.result["named"] for one in outcomes.values()]
    assert all(one == results[0] for one in results)
    return results[0]


@pytest.mark.parametrize(("n", "degree"), [(3, 1), (5, 2), (7, 3)])
def test_extremes_of_the_range_always_pass(n: int, degree: int) -> None:
    """Equal extremes give the largest sums; refusing one would exclude a truthful site."""
    count = 200 if n < 7 else 20
    vectors = {
        "all high": [2**38] * count + [2**48] * count,
        "all low": [-(2**38)] * count + [-(2**48)] * count,
        "mixed": vector(random.Random(n), 2 * count),
        "empty": [],
    }
    assert named(vectors, n, degree) == []


@pytest.mark.parametrize("seed", range(6))
def test_one_element_out_of_range_is_named_among_honest_vectors(seed: int) -> None:
    rng = random.Random(seed)
    vectors = {f"site {k}": vector(rng, 60) for k in range(6)}
    huge = [2**60, 2**77, 2**98, 2**120, PRIME // 2, PRIME // 3, PRIME // 4, -(2**122)]
    for place, value in zip(rng.sample(range(5), 3), rng.sample(huge, 3), strict=True):
        vectors[f"site {place}"][rng.randrange(60)] = value % PRIME
    expected = [
        name
        for name, own in vectors.items()
        if any(min(v % PRIME, -v % PRIME) > 2**49 for v in own)
    ]
    assert len(expected) == 3
    assert named(vectors, seed=seed + 1) == expected


def test_elements_that_cancel_in_the_plain_sum_are_named() -> None:
    """Without random signs two opposite giants would add up to nothing."""
    own = [0] * 40
    own[3], own[30] = 2**100, -(2**100) % PRIME
    assert named({"pair": own, "honest": [1] * 40}) == ["pair"]


@pytest.mark.parametrize("power", [1, 2, 10])
def test_fractions_of_the_field_are_named(power: int) -> None:
    """Multiplied by a power of two, or added in pairs, they look like small numbers."""
    fraction = pow(2**power, -1, PRIME)
    own = [fraction] * 20 + [PRIME - fraction] * 20
    assert named({"fractions": own, "honest": [1] * 40}) == ["fractions"]


def test_signs_of_numbers_of_any_size_are_right() -> None:
    values = [0, 1, -1, 5, 2**60, -(2**60), 2**100, -(2**100), 2**119, -(2**119)]

    def program(mpc: Engine) -> Steps[dict[str, Any]]:
        shared = mpc.wrap(mpc.source.constant(encode(values)), 1)
        return {"fine": (yield from not_negative(mpc, shared, 2**60))}

    for outcome in run(parties_of(3, 1, program)).values():
        assert outcome.result["fine"] == [value >= 0 for value in values]


def test_a_hundred_thousand_elements_are_checked_in_little_time() -> None:
    """The proof must not cost more than what it protects."""
    rng = np.random.default_rng(1)
    vectors = {f"site {k}": rng.integers(-(2**38), 2**38, 2000).tolist() for k in range(50)}
    start = time.process_time()
    assert named(vectors) == []
    assert time.process_time() - start < 60.0
    assert DRAWS >= 40
