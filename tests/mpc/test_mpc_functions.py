"""Every function on shares against the same function on plain numbers."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from veilgrid.errors import InputError
from veilgrid.mpc import dealer, noise, order, policy, statistics
from veilgrid.mpc._points import key_sets
from veilgrid.mpc._shares import Shares, concatenate, public_matrix
from veilgrid.mpc.engine import CheckFailed, Engine
from veilgrid.mpc.field import encode
from veilgrid.mpc.plain import Plain
from veilgrid.mpc.prss import derive_keys, keyring_of
from veilgrid.mpc.shamir import share
from veilgrid.mpc.workload import lockstep
from veilgrid.secret import SeededRandomness

BOUND = 2**40 - 1
SIZES = [(3, 1), (4, 1), (5, 1), (5, 2), (6, 2), (7, 2), (7, 3)]
numbers = st.one_of(st.integers(-BOUND, BOUND), st.sampled_from([0, 1, -1, BOUND, -BOUND]))
vectors = st.lists(numbers, min_size=1, max_size=9)


def on_shares(
    n: int, degree: int, function: Callable[..., Any], values: list[int], bound: int = BOUND
) -> Any:
    keys = derive_keys(n, degree, b"functions")
    shares = share(encode(values), n, degree, SeededRandomness(1))
    engines = [
        Engine(keyring_of(i, n, degree, keys, b""), lambda: bytes(32)) for i in range(1, n + 1)
    ]
    steps = [
        function(engine, engine.wrap(part, bound))
        for engine, part in zip(engines, shares, strict=True)
    ]
    results = lockstep(steps)
    assert all(result == results[0] for result in results)
    return results[0]


def plainly(function: Callable[..., Any], values: list[int], bound: int = BOUND) -> Any:
    plain = Plain()
    return plain.run(function(plain, plain.wrap(encode(values), bound)))


def agree(n: int, degree: int, function: Callable[..., Any], values: list[int]) -> Any:
    shared = on_shares(n, degree, function, values)
    assert shared == plainly(function, values)
    return shared


def arithmetic(mpc: Any, x: Shares) -> Any:
    squares = yield from mpc.multiply(x, x)
    inner = yield from mpc.inner(x, -x)
    rows = yield from mpc.inner(x.repeat(2), (x + 1).repeat(2), 2)
    matrix = public_matrix([[1] * len(x), [-3] * len(x)], x)
    spread = yield from mpc.multiply(x[0], x)
    rest = [3 - x, x * 7 - 2, x.sum(), x.weighted_sum(range(len(x)))]
    return (yield from mpc.open(concatenate([squares, inner, rows, matrix, spread, *rest])))


def comparisons(mpc: Any, x: Shares) -> Any:
    reverse = x[::-1]
    below = yield from order.less(mpc, x, reverse)
    same = yield from order.equal(mpc, x, reverse)
    chosen = yield from order.select(mpc, below, x, reverse)
    clipped = yield from order.clip(mpc, x, mpc.constant([-5]), mpc.constant([2**30]))
    least, most = yield from order.minimum_maximum(mpc, x)
    return (yield from mpc.open(concatenate([below, same, chosen, clipped, least, most])))


def shifts(mpc: Any, x: Shares) -> Any:
    parts = []
    for shift in (1, 13, 40):
        part = yield from mpc.truncate(x, shift)
        parts += [part]
    bits = yield from mpc.decompose(x + BOUND, 41)
    return (yield from mpc.open(concatenate([*parts, *bits])))


def sorting(mpc: Any, x: Shares) -> Any:
    rising = yield from order.sort(mpc, x)
    return (yield from mpc.open(rising))


def middle(mpc: Any, x: Shares) -> Any:
    return (yield from statistics.quantiles(mpc, x, [0.0, 0.5, 0.9, 1.0], -BOUND))


def spread(mpc: Any, x: Shares) -> Any:
    return (yield from statistics.spread(mpc, x))


@pytest.mark.parametrize("function", [arithmetic, comparisons, shifts, sorting])
@pytest.mark.parametrize(("n", "degree"), SIZES)
def test_functions_on_shares_equal_themselves_on_numbers(
    n: int, degree: int, function: Callable[..., Any]
) -> None:
    """Whoever writes a function tests it in the plain; shares must not differ."""
    rng = random.Random(n)
    edges = [0, 1, -1, BOUND, -BOUND]
    agree(n, degree, function, [*edges, *(rng.randrange(-BOUND, BOUND) for _ in range(4))])


@settings(max_examples=8)
@given(values=vectors)
def test_random_inputs_agree(values: list[int]) -> None:
    agree(3, 1, arithmetic, values)
    agree(3, 1, comparisons, values)
    assert agree(3, 1, sorting, values) == sorted(values)


@pytest.mark.parametrize("count", [1, 2, 3, 64, 65, 100])
def test_sort_orders_any_number_of_elements(count: int) -> None:
    rng = random.Random(count)
    values = [rng.randrange(-50, 50) for _ in range(count)]
    assert agree(3, 1, sorting, values) == sorted(values)


@pytest.mark.parametrize(("n", "degree"), [(4, 1), (5, 2), (7, 3)])
def test_long_sorts_prepare_their_comparisons(n: int, degree: int) -> None:
    """Masks made in advance must compare as those made on the way."""
    rng = random.Random(n)
    edges = [BOUND, -BOUND, 0, 0, 1, -1]
    values = [*edges, *(rng.randrange(-BOUND, BOUND) for _ in range(30))]
    assert on_shares(n, degree, sorting, values) == sorted(values)


@pytest.mark.parametrize("count", [1, 2, 5, 70])
def test_quantiles_are_the_empirical_ones(count: int) -> None:
    rng = random.Random(count)
    values = [rng.randrange(-100, 100) for _ in range(count)]
    rising = sorted(values)
    found = agree(3, 1, middle, values)
    assert found[0] == rising[0]
    assert found[1] == rising[(count + 1) // 2 - 1]
    assert found[3] == rising[-1]


def test_spread_is_the_variance_times_the_count_squared() -> None:
    assert agree(3, 1, spread, [1, 2, 3, 4]) == [4 * 30 - 100]


def test_histogram_gives_the_bin_of_a_rank() -> None:
    def binned(mpc: Any, x: Shares) -> Any:
        found = yield from order.quantile_of_counts(mpc, x, [1, 5, 6, 10])
        return (yield from mpc.open(found))

    assert agree(3, 1, binned, [2, 3, 0, 1, 4]) == [0, 1, 3, 4]


def test_overflow_is_refused_before_it_is_computed() -> None:
    """A wrapped sum would look like a result."""

    def cube(mpc: Any, x: Shares) -> Any:
        square = yield from mpc.multiply(x, x)
        return (yield from mpc.multiply(square, square))

    with pytest.raises(InputError, match="do not fit"):
        on_shares(3, 1, cube, [1, 2])

    def compared(mpc: Any, x: Shares) -> Any:
        return (yield from mpc.is_negative(x * 2**60))

    with pytest.raises(InputError, match="cannot be compared"):
        on_shares(3, 1, compared, [1, 2])


@pytest.mark.parametrize(("n", "degree"), [(3, 1), (5, 2)])
def test_random_bits_are_even_and_shared(n: int, degree: int) -> None:
    def bits(mpc: Any, _: Shares) -> Any:
        drawn = yield from mpc.random_bits(2000)
        return (yield from mpc.open(drawn))

    found = on_shares(n, degree, bits, [0])
    assert set(found) == {0, 1}
    assert 850 < sum(found) < 1150


def test_noise_is_discrete_gaussian_and_of_nobodys_choosing() -> None:
    """2,000 draws: mean and variance within five standard errors."""

    def drawn(mpc: Any, _: Shares) -> Any:
        values = yield from noise.discrete_gaussian(mpc, 2000, 3.0)
        return (yield from mpc.open(values))

    found = on_shares(3, 1, drawn, [0])
    mean = sum(found) / 2000
    variance = sum(value**2 for value in found) / 2000
    assert abs(mean) < 5 * 3 / 2000**0.5
    assert abs(variance - 9) < 5 * 9 * (2 / 2000) ** 0.5
    lowest, limits = noise.gaussian_steps(3.0)
    assert lowest == -len(limits) // 2
    assert list(limits) == sorted(limits)
    with pytest.raises(InputError, match="noise"):
        noise.gaussian_steps(5000.0)


@pytest.mark.parametrize(("n", "degree"), [(3, 1), (5, 3), (4, 2)])
def test_dealt_triples_multiply_at_degrees_beyond_half(n: int, degree: int) -> None:
    assert dealt(n, degree) == [9, 16, 25, 216]


def dealt(n: int, degree: int, lie: int = 0) -> Any:
    public, seeds = dealer.deal(n, degree, 12, SeededRandomness(3))
    correction = bytearray(public.correction)
    correction[16] ^= lie
    public = dealer.Deal(public.count, bytes(correction), public.digest)
    keys = derive_keys(n, degree, b"dealt")

    def function(mpc: Any) -> Any:
        x = mpc.constant([3, 4, 5])
        squares = yield from mpc.multiply(x, x)
        total = yield from mpc.inner(squares, x)
        return (yield from mpc.open(concatenate([squares, total])))

    engines = [
        dealer.DealtEngine(
            keyring_of(i, n, degree, keys, b""),
            lambda: bytes(32),
            public,
            {members: seed for members, seed in seeds.items() if i in members},
        )
        for i in range(1, n + 1)
    ]
    return lockstep([function(engine) for engine in engines])[0]


def test_lying_dealer_is_caught_by_sacrifice() -> None:
    with pytest.raises(CheckFailed, match="dealer"):
        dealt(5, 3, lie=1)


@dataclass(frozen=True)
class Found:
    """What a verifier of attestation returns."""

    kind: str = "tdx"
    hardware: bool = True
    measurement: bytes = b"agreed on"
    status: str = "ok"


def test_dealer_without_hardware_is_refused() -> None:
    """Who deals triples could learn products: it runs what was agreed on, where nobody looks."""
    allowing = policy.Policy(is_dealer_allowed=True, dealer_measurements=frozenset({b"agreed on"}))
    dealer.check_dealer(allowing, Found())
    with pytest.raises(InputError, match="allows none"):
        dealer.check_dealer(policy.Policy(), Found())
    with pytest.raises(InputError, match="not hardware: attestation is missing"):
        dealer.check_dealer(allowing, None)
    with pytest.raises(InputError, match="kind software is by software"):
        dealer.check_dealer(allowing, Found("software", hardware=False))
    with pytest.raises(InputError, match="status revoked"):
        dealer.check_dealer(allowing, Found(status="revoked"))
    with pytest.raises(InputError, match="not agreed on"):
        dealer.check_dealer(allowing, Found(measurement=b"another"))
    with pytest.raises(InputError, match="not agreed on"):
        dealer.check_dealer(policy.Policy(is_dealer_allowed=True), Found())
    with pytest.raises(InputError) as caught:
        dealer.check_dealer(allowing, Found("software", False, b"x", "old"))
    assert len(caught.value.findings) == 3
    lenient = policy.Policy(is_dealer_allowed=True, is_software_dealer_allowed=True)
    dealer.check_dealer(lenient, None)
    with pytest.raises(InputError, match="status revoked"):
        dealer.check_dealer(lenient, Found(status="revoked"))


def test_a_refusal_says_what_would_work() -> None:
    """Comparisons above half need fewer who may collude or more parties; at most 7 there are."""
    with pytest.raises(InputError, match=r"also with dealt.*use degree 2 or less, or 7 parties"):
        policy.check(5, 3, "median", policy=policy.Policy(is_dealer_allowed=True))
    with pytest.raises(InputError, match=r"use degree 3 or less\)"):
        policy.check(7, 4, "median")


@pytest.mark.parametrize("n", range(3, 8))
def test_policy_speaks_before_any_input_is_taken(n: int) -> None:
    """The default of a linear function is a supermajority; products need 2 degree < n."""
    assert policy.linear_degree(n) + 1 >= 2 * n / 3
    policy.check(n, policy.linear_degree(n), "sum", checked_inputs=False)
    policy.check(n, policy.default_degree(n, "median"), "median")
    with pytest.raises(InputError, match=r"use degree"):
        policy.check(n, n - 1, "median")
    with pytest.raises(InputError, match=r"or dealt"):
        policy.check(n, n - 1, "variance")
    with pytest.raises(InputError, match=r"expected 1"):
        policy.check(n, n, "sum")
    allowed = policy.Policy(is_dealer_allowed=True)
    if n > 3:
        policy.check(n, n - 2, "variance", policy=allowed)
    with pytest.raises(InputError, match=r"dealt triples are checked"):
        policy.check(n, n - 1, "variance", policy=allowed)


def signs(dropped: int) -> Callable[..., Any]:
    def function(mpc: Any, x: Shares) -> Any:
        return (yield from mpc.open_negative(x, dropped))

    return function


@pytest.mark.parametrize(("n", "degree"), SIZES)
def test_signs_open_as_they_are_and_without_low_bits_where_these_do_not_matter(
    n: int, degree: int
) -> None:
    """The network step of a sealed day moves by these bits; one wrong bit moves all prices."""
    rng = random.Random(n)
    close = [0, 1, -1, BOUND, -BOUND]
    values = [*close, *(rng.randrange(-BOUND, BOUND) for _ in range(70))]
    assert on_shares(n, degree, signs(0), values) == [int(value < 0) for value in values]
    dropped, sets = 20, len(key_sets(n, degree))
    edge = (sets << dropped) // 2 + 1
    far = [value for value in values if abs(value) >= edge] + 40 * [edge, -edge]
    assert on_shares(n, degree, signs(dropped), far) == [int(value < 0) for value in far]


@pytest.mark.parametrize(("n", "degree"), SIZES)
def test_quick_truncation_is_off_by_no_more_than_the_summands_of_a_mask(
    n: int, degree: int
) -> None:
    rng = random.Random(n)
    values = [0, 1, -1, BOUND, -BOUND, *(rng.randrange(-BOUND, BOUND) for _ in range(20))]

    def function(mpc: Any, x: Shares) -> Any:
        near = yield from mpc.truncate_nearly(x, 13)
        exact = yield from mpc.truncate(x, 13)
        return (yield from mpc.open(near - exact))

    found = on_shares(n, degree, function, values)
    assert max(abs(value) for value in found) <= len(key_sets(n, degree))


def test_a_bent_gate_or_share_opens_no_sign(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing may open before the gates that it depends on were checked."""
    both, reveal = Engine.both, Engine.reveal_octal

    def bent_gate(engine: Engine, a: Any, b: Any) -> Any:
        found = yield from both(engine, a ^ np.uint64(engine.me == 2), b)
        return found

    def bent_share(engine: Engine, data: Any) -> Any:
        return (yield from reveal(engine, data ^ np.uint64(engine.me == 2)))

    monkeypatch.setattr(Engine, "both", bent_gate)
    with pytest.raises(CheckFailed, match=r"multiplication was wrong|contradict"):
        on_shares(3, 1, signs(0), [5, -5])
    monkeypatch.setattr(Engine, "both", both)
    monkeypatch.setattr(Engine, "reveal_octal", bent_share)
    with pytest.raises(CheckFailed, match="contradict"):
        on_shares(3, 1, signs(0), [5, -5])


@pytest.mark.parametrize(("n", "degree"), SIZES)
def test_nothing_at_all_is_compared_and_divided_like_anything_else(n: int, degree: int) -> None:
    """A vector may be empty, say of the inputs that are left; its check has nothing to fold."""

    def function(mpc: Any, x: Shares) -> Any:
        none = x[:0]
        below = yield from mpc.is_negative(none)
        same = yield from mpc.is_zero(none)
        shorter = yield from mpc.truncate(none, 3)
        opened = yield from mpc.open(concatenate([below, same, shorter]))
        signs = yield from mpc.open_negative(none)
        return opened, signs

    assert on_shares(n, degree, function, [1]) == ([], [])
