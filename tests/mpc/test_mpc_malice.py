"""Seeded malicious trials, and what any minority sees."""

import random
from typing import Any

import numpy as np
import pytest
from mpc_malice import SIZES, Deviation, campaign, compare, product, right_answer, trial

from veilgrid.mpc._round import Round
from veilgrid.mpc.engine import Engine
from veilgrid.mpc.field import PRIME_FIELD, Words, encode
from veilgrid.mpc.prss import derive_keys, keyring_of
from veilgrid.mpc.shamir import share
from veilgrid.secret import SystemRandomness


def test_no_wrong_output_is_accepted() -> None:
    """A part of the campaign; docs/protocol/mpc.md quotes the full one."""
    counts = campaign(500)
    assert sum(counts.values()) == 500
    assert sum(count for (_, outcome), count in counts.items() if outcome == "detected") > 250


@pytest.mark.parametrize(("n", "degree"), SIZES)
def test_honest_trials_end_right(n: int, degree: int) -> None:
    """The trials would prove nothing if they never ended well."""

    class Honest(Deviation):
        def said(self, sender: int, receiver: int, number: int, spoken: Round) -> Any:
            self.round = -1
            return super().said(sender, receiver, number, spoken)

    rng = random.Random(1)
    honest = Honest(rng, n, degree, 5)
    assert honest.corrupt
    outcomes = {trial(seed, n, degree, product, 10_000) for seed in range(4)}
    assert "WRONG" not in outcomes
    assert right_answer(compare, [-1, 2]) == [1, 0]


def view(secret: int, leak: str, run: int) -> Words:
    """Return features of what party 1 hears in one run with a secret of 0 or 1.

    Besides raw words these are what it can combine: totals of what was said, and each number
    heard taken for another party's share of the secret.
    """
    n, degree = 3, 1
    keys = derive_keys(n, degree, b"%d" % run)
    shares = share(encode([secret]), n, degree, SystemRandomness())
    engines = [
        Engine(keyring_of(i, n, degree, keys, b"%d" % run), lambda: bytes(32))
        for i in range(1, n + 1)
    ]

    def function(mpc: Engine, own: Words) -> Any:
        x = mpc.wrap(own, 1)
        if leak == "mask":
            mpc.source.random = lambda field, count: field.zeros(count)  # type: ignore[method-assign]
        yield from mpc.multiply(x, x)
        if leak == "share":
            yield Round(PRIME_FIELD.flat(x.data), label="leak")
        below = yield from mpc.is_negative(x - 1)
        yield from mpc.check()
        return below

    steps = [function(one, part) for one, part in zip(engines, shares, strict=True)]
    rounds = [next(one) for one in steps]
    features = []
    while True:
        heard = [_heard(rounds, i) for i in range(n)]
        said = np.stack([one.shared for one in rounds])
        features.append(_features(said, shares[0]))
        try:
            rounds = [one.send(part) for one, part in zip(steps, heard, strict=True)]
        except StopIteration:
            return np.concatenate(features)


def _heard(rounds: list[Round], receiver: int) -> list[Any]:
    from veilgrid.mpc._round import EMPTY, Heard

    return [Heard(one.shared, one.private[receiver] if one.private else EMPTY) for one in rounds]


def _features(said: Words, own: Words) -> Words:
    total = np.bitwise_xor.reduce(said)
    out = [said[1], said[2], total]
    if said.shape[1] % 2 == 0:
        vectors = [PRIME_FIELD.from_words(row.copy()) for row in said]
        sums = PRIME_FIELD.add(PRIME_FIELD.add(vectors[0], vectors[1]), vectors[2])
        out.append(PRIME_FIELD.from_words(PRIME_FIELD.flat(sums)).reshape(-1))
        twice = PRIME_FIELD.add(own, own)
        spread = np.repeat(twice, vectors[1].shape[0], axis=0)
        guess = PRIME_FIELD.subtract(spread, vectors[1])  # line through points 1 and 2, at 0
        out.append(PRIME_FIELD.from_words(PRIME_FIELD.flat(guess)).reshape(-1))
    return np.concatenate(out)


def largest_difference(leak: str, runs: int = 90) -> float:
    """Return the largest standardised difference of any bit's frequency between 0 and 1."""
    ones = []
    for secret in (0, 1):
        words = np.stack([view(secret, leak, 2 * run + secret) for run in range(runs)])
        bits = (words[..., np.newaxis] >> np.arange(0, 64, 3, dtype=np.uint64)) & np.uint64(1)
        ones.append(bits.astype(np.int64).sum(axis=0).reshape(-1))
    pooled = (ones[0] + ones[1]) / (2 * runs)
    deviation = np.sqrt(np.maximum(2 * pooled * (1 - pooled) / runs, 1e-9))
    return float(np.max(np.abs(ones[0] - ones[1]) / runs / deviation))


def test_views_of_a_minority_do_not_depend_on_inputs() -> None:
    """Some 60,000 bits; the largest of so many standard normals exceeds 6.5 once in 200,000."""
    assert largest_difference("") < 6.5


@pytest.mark.parametrize("leak", ["share", "mask"])
def test_the_test_of_views_fails_when_something_leaks(leak: str) -> None:
    assert largest_difference(leak) > 8
