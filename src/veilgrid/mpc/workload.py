"""Computations of known size, to be run by processes and timed [mpc 9]."""

from collections.abc import Callable, Mapping
from typing import Final

import msgspec
import numpy as np

from veilgrid.errors import invariant
from veilgrid.machine import NodeId
from veilgrid.mpc._round import Heard, Round, Steps
from veilgrid.mpc._shares import Shares
from veilgrid.mpc.circuit import decompose, is_negative, truncate
from veilgrid.mpc.engine import Engine
from veilgrid.mpc.field import PRIME_FIELD, Words, encode_words
from veilgrid.mpc.order import sort
from veilgrid.mpc.party import Party, Program
from veilgrid.mpc.prss import derive_keys, keyring_of
from veilgrid.secret import Randomness
from veilgrid.signature import Signs

BITS: Final = 40
_BOUND: Final = 2**BITS - 1


class Workload(msgspec.Struct, frozen=True):
    """What to run.

    Attributes
    ----------
    kind
        ``comparisons``, ``multiplications``, ``sort`` or ``weighted-sum``.
    count
        How many of them, or how many numbers.
    degree
        Of the sharings.
    """

    kind: str
    count: int
    degree: int


def numbers_of(workload: Workload, salt: int = 0) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Return the inputs, signed numbers of 40 bits, the same for every party."""
    generator = np.random.Generator(np.random.PCG64(20261122 + salt))
    return generator.integers(-_BOUND, _BOUND + 1, workload.count, dtype=np.int64)


def expected(workload: Workload) -> list[str]:
    """Return what the computation must open."""
    x, y = numbers_of(workload), numbers_of(workload, 1)
    match workload.kind:
        case "comparisons":
            return [str(int(value)) for value in (x < y)]
        case "multiplications":
            return [str(sum(a * b for a, b in zip(x.tolist(), y.tolist(), strict=True)))]
        case "sort":
            return [str(value) for value in sorted(x.tolist())]
        case _:
            return [str(sum(a * (k % 1000 + 1) for k, a in enumerate(x.tolist())))]


def shares_of(values: np.ndarray[tuple[int], np.dtype[np.int64]], party: int, degree: int) -> Words:
    """Return one party's shares of public test inputs, from polynomials with a public seed."""
    return shares_of_words(encode_words(values), party, degree)


def shares_of_words(values: Words, party: int, degree: int) -> Words:
    """Return the same for elements of the field."""
    generator = np.random.Generator(np.random.PCG64(7))
    blocks = [values]
    for _ in range(degree):
        words = generator.integers(0, 2**63, values.size, dtype=np.uint64)
        blocks.append(PRIME_FIELD.from_words(words))
    powers = PRIME_FIELD.vector([party**k for k in range(degree + 1)])
    return PRIME_FIELD.combine(powers, np.stack(blocks))


def _comparisons(mpc: Engine, x: Shares, y: Shares) -> Steps[list[str]]:
    below = yield from mpc.is_negative(x - y)
    opened = yield from mpc.open(below)
    return [str(value) for value in opened]


def _multiplications(mpc: Engine, x: Shares, y: Shares) -> Steps[list[str]]:
    products = yield from mpc.multiply(x, y)
    opened = yield from mpc.open(products.sum())
    return [str(value) for value in opened]


def _sort(mpc: Engine, x: Shares, _: Shares) -> Steps[list[str]]:
    ordered = yield from sort(mpc, x)
    opened = yield from mpc.open(ordered)
    return [str(value) for value in opened]


def _weighted_sum(mpc: Engine, x: Shares, _: Shares) -> Steps[list[str]]:
    weights = np.arange(len(x), dtype=np.int64) % 1000 + 1
    opened = yield from mpc.open(x.weighted_sum(weights))
    return [str(value) for value in opened]


KINDS: Final[Mapping[str, Callable[[Engine, Shares, Shares], Steps[list[str]]]]] = {
    "comparisons": _comparisons,
    "multiplications": _multiplications,
    "sort": _sort,
    "weighted-sum": _weighted_sum,
}


def program_of(workload: Workload, party: int) -> Program:
    """Return the computation with this party's shares of the test inputs."""
    x = shares_of(numbers_of(workload), party, workload.degree)
    y = shares_of(numbers_of(workload, 1), party, workload.degree)

    def program(mpc: Engine) -> Steps[list[str]]:
        return (yield from KINDS[workload.kind](mpc, mpc.wrap(x, _BOUND), mpc.wrap(y, _BOUND)))

    return program


def warm_up() -> None:
    """Load every compiled kernel, with a small computation of three parties in this process."""
    keys = derive_keys(3, 1, b"warm")

    def everything(mpc: Engine) -> Steps[None]:
        x = mpc.constant([5, -3, 2])
        yield from is_negative(mpc, x)
        yield from truncate(mpc, x, 2)
        yield from decompose(mpc, x + 4, 3)
        product = yield from mpc.multiply(x.repeat(30), x.repeat(30))
        yield from mpc.open(product.weighted_sum([1] * 90))
        yield from mpc.open(product.sum())

    engines = [Engine(keyring_of(i, 3, 1, keys, b""), lambda: bytes(32)) for i in (1, 2, 3)]
    lockstep([everything(engine) for engine in engines])
    shares_of(np.arange(3), 1, 1)


def lockstep(steps: list[Steps[object]]) -> list[object]:
    """Step computations of all parties in this process, without messages or signatures."""
    results: list[object] = [None] * len(steps)
    rounds: list[Round] = [next(one) for one in steps]
    while True:
        ended = 0
        spoken: list[Round] = []
        for index, one in enumerate(steps):
            heard = [
                Heard(said.shared, said.private[index] if said.private else said.shared[:0])
                for said in rounds
            ]
            try:
                spoken.append(one.send(heard))
            except StopIteration as stop:
                results[index] = stop.value
                ended += 1
        if ended:
            invariant(ended == len(steps), "all parties end in the same round")
            return results
        rounds = spoken


def build_party(
    me: NodeId,
    arguments: Workload,
    randomness: Randomness,
    peers: list[NodeId],
    signer: Signs,
    verify_keys: Mapping[NodeId, bytes],
) -> Party:
    """Make a party for a workload; a factory for :mod:`veilgrid.node.local`."""
    warm_up()
    names = tuple(sorted(peers))
    return Party(
        me,
        names,
        arguments.degree,
        program_of(arguments, names.index(me) + 1),
        signer=signer,
        verify_keys=verify_keys,
        randomness=randomness,
        session=b"workload",
        patience_ns=60_000_000_000,
    )
