"""What opens before a check hides what it is about, whatever was bent before."""

from collections.abc import Callable, Generator
from typing import Any

import numpy as np
import pytest

from veilgrid.mpc._round import Heard, Round, together
from veilgrid.mpc._shares import Shares
from veilgrid.mpc.bounded import not_negative
from veilgrid.mpc.engine import CheckFailed, Engine
from veilgrid.mpc.field import PRIME, PRIME_FIELD, Field, Words, encode
from veilgrid.mpc.prss import Keyring, derive_keys, keyring_of
from veilgrid.mpc.shamir import share
from veilgrid.mpc.workload import lockstep
from veilgrid.secret import SeededRandomness

SECRETS = [0, 1, 5, 22, 37, 43, 58, 63]
BOUND = 2**40 - 1
STEP = 121
"""A secret times two to this power stands above all bits of a short mask: 6 bits of it."""


class Bent(Engine):
    """Party 1: adds to its first product, and remembers all that it sees of masked numbers."""

    by = 2**STEP
    calls = 0

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.drawn: list[Words] = []
        # Of each masked opening the high bits without own summands of short, then of long masks.
        self.seen: list[list[int]] = []
        self._raw = self.source.raw
        self.source.raw = self._spied  # type: ignore[method-assign]

    def _spied(self, members: tuple[int, ...], count: int) -> Words:
        words = self._raw(members, count)
        self.drawn.append(words)
        return words

    def summed(self, field: Field, local: Words) -> Any:
        self.calls += 1
        zero = self.source.zero
        if self.calls == 1:
            more = field.vector([self.by] * len(local))
            self.source.zero = lambda *args: field.add(zero(*args), more)  # type: ignore[method-assign]
        steps = super().summed(field, local)
        spoken = next(steps)
        self.source.zero = zero  # type: ignore[method-assign]
        while True:
            heard = yield spoken
            try:
                spoken = steps.send(heard)
            except StopIteration as stop:
                return stop.value

    def reveal(self, data: Words) -> Any:
        opened = yield from super().reveal(data)
        count = len(SECRETS)
        if len(data) == count:
            whole = [one for one in self.drawn if one.size in (2 * count, 2 * 64)]
            own = [one.reshape(-1, 2)[:count] for one in whole[-len(self.source.sets) :]]
            for top in (2**119 - 1, 2**127 - 1):
                known = [
                    sum((int(mask[k, 0]) | int(mask[k, 1]) << 64) & top for mask in own)
                    for k in range(count)
                ]
                rest = zip(PRIME_FIELD.numbers(opened), known, strict=True)
                high = [(value - mask) % PRIME >> STEP for value, mask in rest]
                self.seen.append([(one - high[0]) % 64 for one in high])
        return opened


def compared(mpc: Engine, wide: Shares) -> Any:
    return (yield from mpc.is_negative(wide))


def compared_at_once(mpc: Engine, wide: Shares) -> Any:
    return (yield from mpc.open_negative(wide, 3))


def compared_with_prepared_masks(mpc: Engine, wide: Shares) -> Any:
    masks = yield from mpc.prepare([len(wide)] * 15, wide)
    return (yield from mpc.where_negative(wide, wide, masks[-1]))


def equal_to_zero(mpc: Engine, wide: Shares) -> Any:
    return (yield from mpc.is_zero(wide))


def divided(mpc: Engine, wide: Shares) -> Any:
    return (yield from mpc.truncate(wide, 7))


def nearly_divided(mpc: Engine, wide: Shares) -> Any:
    return (yield from mpc.truncate_nearly(wide, 7))


def in_bits(mpc: Engine, wide: Shares) -> Any:
    return (yield from mpc.decompose(wide, 9))


def of_any_size(mpc: Engine, wide: Shares) -> Any:
    return (yield from not_negative(mpc, wide, BOUND))


@pytest.mark.parametrize(
    "function",
    [
        compared,
        compared_at_once,
        compared_with_prepared_masks,
        equal_to_zero,
        divided,
        nearly_divided,
        in_bits,
        of_any_size,
    ],
)
def test_a_false_product_lets_nobody_see_what_it_was_multiplied_with(
    function: Callable[..., Any],
) -> None:
    """A product that is off by much of the field, times a secret, is larger than a short mask.

    So a mask that is opened before the check is uniform in the field, or the product is checked
    first.
    """

    def whole(mpc: Engine, x: Shares) -> Any:
        nothing = yield from mpc.multiply(mpc.constant([0] * len(x)), x)
        wide = yield from mpc.multiply(nothing, x)
        yield from function(mpc, wide.claim(BOUND))
        yield from mpc.agree()

    engines = engines_of(Bent)
    with pytest.raises(CheckFailed, match="multiplication was wrong"):
        lockstep(shared(engines, whole))
    bent = engines[0]
    assert isinstance(bent, Bent)
    assert SECRETS not in bent.seen


def test_a_bent_gate_is_found_before_a_short_mask_opens(monkeypatch: pytest.MonkeyPatch) -> None:
    """A quotient whose low bits are wrong is a fraction, as large as the field."""
    zero = Keyring.octal_zero

    def bent_zero(keyring: Keyring, count: int) -> Words:
        return zero(keyring, count) ^ np.uint64(keyring.me == 1)

    def whole(mpc: Engine, x: Shares) -> Any:
        quotient = yield from mpc.truncate(x, 7)
        yield from mpc.truncate_nearly(quotient, 7)

    monkeypatch.setattr(Keyring, "octal_zero", bent_zero)
    engines = engines_of(Bent)
    bent = engines[0]
    assert isinstance(bent, Bent)
    bent.by = 0
    with pytest.raises(CheckFailed, match="multiplication was wrong"):
        lockstep(shared(engines, whole))
    assert len(bent.seen) == 2  # Of the first truncation alone, read in two ways.


@pytest.mark.parametrize("is_forced", [False, True])
@pytest.mark.parametrize("function", [equal_to_zero, nearly_divided, of_any_size])
def test_digests_are_compared_before_a_short_mask_opens(
    function: Callable[..., Any], is_forced: bool
) -> None:
    """Who tells one party its part of a product, and hears the coin, can suit another's to it.

    Errors in two products that cancel under the coin pass the check.
    """

    def whole(mpc: Engine, x: Shares) -> Any:
        square = yield from mpc.multiply(x, x)
        if is_forced:
            yield from mpc.check()
        yield from function(mpc, square.claim(BOUND))

    engines = engines_of(Bent)
    bent = engines[0]
    assert isinstance(bent, Bent)
    bent.by = 0
    for number, engine in enumerate(engines):
        engine.digest = bytes([number] * 32).__bytes__
    with pytest.raises(CheckFailed, match="did not hear the same"):
        lockstep(shared(engines, whole))
    assert bent.seen == []


def engines_of(first: type[Engine]) -> list[Engine]:
    keys = derive_keys(3, 1, b"hiding")
    kinds = [first, Engine, Engine]
    return [
        kind(keyring_of(number, 3, 1, keys, b""), lambda: bytes(32))
        for number, kind in enumerate(kinds, 1)
    ]


def shared(engines: list[Engine], function: Callable[..., Any]) -> list[Any]:
    parts = share(encode(SECRETS), 3, 1, SeededRandomness(1))
    return [
        function(engine, engine.wrap(part, BOUND))
        for engine, part in zip(engines, parts, strict=True)
    ]


def labelled(steps: Any, said: list[str]) -> Generator[Round, list[Heard], Any]:
    """Run a computation and remember what its rounds are for."""
    spoken = next(steps)
    while True:
        said.append(spoken.label)
        heard = yield spoken
        try:
            spoken = steps.send(heard)
        except StopIteration as stop:
            return stop.value


def two_openings(mpc: Engine, x: Shares) -> Any:
    """Open side by side what takes long to check and what does not."""

    def long() -> Any:
        product = yield from mpc.multiply(x.tile(400), x.tile(400))
        return (yield from mpc.open(product[: len(x)]))

    def short() -> Any:
        product = yield from mpc.multiply(x, x + 1)
        return (yield from mpc.open(product))

    return (yield from together(long(), short()))


def test_what_opens_side_by_side_waits_for_the_check_of_both() -> None:
    """One check takes all that is pending; who finds nothing left to check must not open yet."""
    said: list[str] = []
    steps = shared(engines_of(Engine), two_openings)
    found = lockstep([labelled(steps[0], said), *steps[1:]])[0]
    assert found == ([x * x for x in SECRETS], [x * (x + 1) for x in SECRETS])
    opened = [number for number, label in enumerate(said) if "output" in label]
    checked = [number for number, label in enumerate(said) if "check prime" in label]
    assert min(opened) > max(checked)


def test_a_bent_product_opens_nothing_side_by_side() -> None:
    """Neither the product that is bent nor the other, whichever of them is checked first."""
    said: list[str] = []
    steps = shared(engines_of(Bent), two_openings)
    with pytest.raises(CheckFailed, match="multiplication was wrong"):
        lockstep([steps[0], labelled(steps[1], said), steps[2]])
    assert not any("output" in label for label in said)


def test_masks_are_uniform_whatever_they_hide() -> None:
    """The number that opens fills the field also where what it hides is zero."""
    engines = engines_of(Bent)
    bent = engines[0]
    assert isinstance(bent, Bent)
    bent.by = 0

    def zeros(mpc: Engine, x: Shares) -> Any:
        nothing = yield from mpc.multiply(mpc.constant([0] * len(x)), x)
        for _ in range(120):
            yield from mpc.is_negative(nothing)

    lockstep(shared(engines, zeros))
    for which in range(2):
        seen = np.array(bent.seen[which::2])[:, 1:]
        assert len(np.unique(seen)) == 64
