"""Seeded trials with somebody who deviates; run as a script for the full count.

    PYTHONPATH=src python tests/mpc/mpc_malice.py --trials 100000

A trial runs a small computation with one to ``degree`` deviating parties, which change, withhold,
replay or contradict what they say. Accepted is what an honest party returns. It must be right.
"""

import argparse
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

from veilgrid.mpc import engine as engine_module
from veilgrid.mpc._round import Heard, Round, Steps
from veilgrid.mpc._shares import Shares, concatenate
from veilgrid.mpc.engine import CheckFailed, Engine
from veilgrid.mpc.field import PRIME_FIELD, Words, encode
from veilgrid.mpc.order import sort
from veilgrid.mpc.prss import derive_keys, keyring_of
from veilgrid.mpc.shamir import share
from veilgrid.secret import SeededRandomness

SIZES = ((3, 1), (4, 1), (5, 2), (6, 2), (7, 3))
KINDS = (
    "flip a bit",
    "random words",
    "zeros",
    "replay",
    "two faces",
    "add one to all",
    "lie to a king",
    "wrong input share",
    "wrong key",
    "wrong zero shares",
)

Function = Callable[[Engine, Shares], Steps[list[int]]]


def product(mpc: Engine, x: Shares) -> Steps[list[int]]:
    squares = yield from mpc.multiply(x, x)
    total = yield from mpc.inner(squares, x)
    return (yield from mpc.open(concatenate([squares, total])))


def linear(mpc: Engine, x: Shares) -> Steps[list[int]]:
    return (yield from mpc.open(x.weighted_sum([3, -5])))


def compare(mpc: Engine, x: Shares) -> Steps[list[int]]:
    below = yield from mpc.is_negative(x)
    return (yield from mpc.open(below))


def ordered(mpc: Engine, x: Shares) -> Steps[list[int]]:
    rising = yield from sort(mpc, x)
    return (yield from mpc.open(rising))


def right_answer(function: Function, values: list[int]) -> list[int]:
    if function is product:
        return [*(v * v for v in values), sum(v**3 for v in values)]
    if function is linear:
        return [3 * values[0] - 5 * values[1]]
    if function is compare:
        return [int(v < 0) for v in values]
    return sorted(values)


class Deviation:
    """How the corrupt parties deviate in one trial."""

    def __init__(self, rng: random.Random, n: int, degree: int, round_max: int) -> None:
        self.rng = rng
        self.kind = rng.choice(KINDS)
        self.corrupt = set(rng.sample(range(n), rng.randint(1, degree)))
        self.round = rng.randrange(round_max)
        self.former: dict[int, Words] = {}

    def said(self, sender: int, receiver: int, number: int, spoken: Round) -> Heard:
        """Return what ``receiver`` hears of what ``sender`` would honestly say."""
        private = spoken.private[receiver] if spoken.private else spoken.shared[:0]
        if sender not in self.corrupt or number != self.round:
            return Heard(spoken.shared, private)
        if private.size and sender != receiver:
            return Heard(spoken.shared, self.changed(private))
        if self.kind == "two faces" and (receiver + sender) % 2:
            return Heard(spoken.shared, private)
        if self.kind == "replay" and self.former.get(sender, private).size == spoken.shared.size:
            return Heard(self.former.get(sender, spoken.shared), private)
        return Heard(self.changed(spoken.shared), private)

    def changed(self, words: Words) -> Words:
        if words.size == 0:
            return words
        rng = random.Random(self.rng.random() if self.kind == "two faces" else self.round)
        out = words.copy()
        if self.kind == "random words":
            return np.array([rng.getrandbits(64) for _ in range(out.size)], np.uint64)
        if self.kind == "zeros":
            return np.zeros_like(out)
        if self.kind == "add one to all":
            return out + np.uint64(1)
        out[rng.randrange(out.size)] ^= np.uint64(1 << rng.randrange(64))
        return out


def engines_of(
    n: int, degree: int, deviation: Deviation, seed: int, digests: list[Callable[[], bytes]]
) -> list[Engine]:
    right = derive_keys(n, degree, b"%d" % seed)
    wrong = derive_keys(n, degree, b"wrong %d" % seed)
    engines = []
    for index in range(n):
        keys = right
        if index in deviation.corrupt and deviation.kind == "wrong key":
            keys = (wrong[0], right[1])
        if index in deviation.corrupt and deviation.kind == "wrong zero shares":
            keys = (right[0], wrong[1])
        ring = keyring_of(index + 1, n, degree, keys, b"trial")
        engines.append(Engine(ring, digests[index]))
    return engines


def trial(seed: int, n: int, degree: int, function: Function, round_max: int) -> str:
    """Return ``right``, ``detected`` or ``WRONG`` for the honest parties of one trial."""
    rng = random.Random(seed)
    values = [rng.randrange(-1000, 1000) for _ in range(2)]
    deviation = Deviation(rng, n, degree, round_max)
    shares = share(encode(values), n, degree, SeededRandomness(seed))
    heads = [b"" for _ in range(n)]

    def head_of(index: int) -> Callable[[], bytes]:
        import hashlib

        return lambda: hashlib.sha256(heads[index]).digest()

    engines = engines_of(n, degree, deviation, seed, [head_of(index) for index in range(n)])
    steps = []
    for index, engine in enumerate(engines):
        data = shares[index]
        if index in deviation.corrupt and deviation.kind == "wrong input share":
            data = PRIME_FIELD.add(data, encode([1 + seed % 5] * len(values)))
        steps.append(function(engine, engine.wrap(data, 1000)))
    usual = engine_module.KING_WORDS
    # In a quarter of all trials even the smallest vectors travel through kings.
    engine_module.KING_WORDS = 4 if seed % 4 == 0 or deviation.kind == "lie to a king" else usual
    try:
        return stepped(steps, deviation, heads, right_answer(function, values))
    finally:
        engine_module.KING_WORDS = usual


def stepped(
    steps: list[Steps[list[int]]], deviation: Deviation, heads: list[bytes], right: list[int]
) -> str:
    n = len(steps)
    rounds: list[Any] = [next(one) for one in steps]
    number = 0
    while True:
        heard = [
            [
                deviation.said(j, i, number, rounds[j])
                if i != j
                else Heard(
                    rounds[j].shared,
                    rounds[j].private[j] if rounds[j].private else rounds[j].shared[:0],
                )
                for j in range(n)
            ]
            for i in range(n)
        ]
        for i in range(n):
            heads[i] += b"".join(one.shared.tobytes() for one in heard[i])
        deviation.former = {j: rounds[j].shared for j in range(n)}
        ended, failed = [], False
        for i in range(n):
            if i in deviation.corrupt:
                _step_corrupt(steps, i, heard[i], rounds)
                continue
            try:
                rounds[i] = steps[i].send(heard[i])
            except StopIteration as stop:
                ended.append(stop.value)
            except CheckFailed:
                failed = True
        if any(value != right for value in ended):
            return "WRONG"
        if failed:
            return "detected"
        if ended:
            return "right"
        number += 1
        # A message of the wrong length ends the round, as it does in party.py.
        sizes = [_sizes(rounds[i]) for i in range(n) if i not in deviation.corrupt]
        if any(_sizes(rounds[j]) != sizes[0] for j in deviation.corrupt):
            return "detected"


def _sizes(spoken: Round) -> tuple[int, int]:
    return spoken.shared.size, spoken.private[0].size if spoken.private else 0


def _step_corrupt(
    steps: list[Steps[list[int]]], index: int, heard: list[Heard], rounds: list[Any]
) -> None:
    """A corrupt party goes on as if nothing had happened, as long as it can."""
    try:
        rounds[index] = steps[index].send(heard)
    except (StopIteration, CheckFailed):
        return


def campaign(trials: int, first_seed: int = 0) -> Counter[tuple[str, str]]:
    """Run trials; return how many ended how, by kind of deviation."""
    counts: Counter[tuple[str, str]] = Counter()
    for seed in range(first_seed, first_seed + trials):
        rng = random.Random(seed)
        # Most trials take the cheapest functions and sizes; every one of them appears.
        n, degree = SIZES[rng.choices(range(5), (60, 20, 12, 5, 3))[0]]
        function, round_max = rng.choices(
            ((product, 10), (linear, 2), (compare, 26), (ordered, 26)), (74, 20, 5, 1)
        )[0]
        outcome = trial(seed, n, degree, function, round_max)
        if outcome == "WRONG":
            raise AssertionError(f"wrong output accepted: {seed=} {n=} {degree=} {function=}")
        kind = Deviation(_skip_values(seed), n, degree, round_max).kind
        counts[kind, outcome] += 1
    return counts


def _skip_values(seed: int) -> random.Random:
    rng = random.Random(seed)
    for _ in range(2):
        rng.randrange(-1000, 1000)
    return rng


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--trials", type=int, default=100_000)
    parser.add_argument("--first-seed", type=int, default=0)
    chosen = parser.parse_args()
    started = time.perf_counter()
    counts = campaign(chosen.trials, chosen.first_seed)
    for (kind, outcome), count in sorted(counts.items()):
        sys.stdout.write(f"{kind:20} {outcome:10} {count}\n")
    seconds = time.perf_counter() - started
    sys.stdout.write(f"{chosen.trials} trials, no wrong output accepted, {seconds:.0f} s\n")


if __name__ == "__main__":
    main()
