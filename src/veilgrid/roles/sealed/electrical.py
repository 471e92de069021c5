"""The electrical check of a plan on shares: AC power flow by sweeps [sealed 6.1].

The branch-flow equations [Baran and Wu 1989] with losses, solved by repetition: squared currents
from flows and voltages, flows from losses, voltages from both. A reciprocal of a squared voltage
is a polynomial around one. The first sweep is LinDistFlow; each further one leaves about a
hundredth of the error. Only verdicts and the extremes open.
"""

from typing import Any, Final

import numpy as np

from veilgrid.mpc import Engine, Mpc, Shares, Steps, minimum_maximum
from veilgrid.mpc._round import together
from veilgrid.mpc.bounded import not_negative
from veilgrid.mpc.field import PRIME_FIELD, Words, encode, encode_words
from veilgrid.roles.sealed.narrowing import SHOWN_BITS, has_places
from veilgrid.roles.sealed.register import FACTOR_BITS, POWER_BITS, Register, factors
from veilgrid.roles.sealed.step import below_zero
from veilgrid.roles.sealed.step_dual import COMPARED_BOUND, rounded_steps

SWEEPS: Final = 4
"""Repetitions after the lossless flow; what the last one moved is checked."""

STILL_PU: Final = 2e-6
"""Per-unit squared; a voltage that the last sweep moved by more has not settled."""

TOLERANCE_PU: Final = 1.8e-6
"""Per-unit squared, or share of a squared rating: what rounding may exceed a limit by. Less than
the same check in floating point lets pass, so what passes here passes there."""

REACH_PU: Final = 0.5
"""Per-unit squared; where LinDistFlow's voltage is further from one, no power flow is tried."""

LOSS_MAX_PU: Final = 0.25
"""Per-unit squared; no more may losses take from a voltage in the first sweep. Then they grow by
less than a half in each further one, and all numbers stay within what can be compared."""

FLOW_MAX_PU: Final = 256.0
"""Per-unit; where a branch carries more, no power flow is tried."""

LOADING_MAX: Final = 16.0
"""Multiple of its rating; where a branch carries more, no power flow is tried."""

WIDE: Final = POWER_BITS + FACTOR_BITS

_add, _subtract, _scale = PRIME_FIELD.add, PRIME_FIELD.subtract, PRIME_FIELD.scale


class _Feeder:
    """Demands, flows and voltages of one plan on shares, (bus, interval, word) each."""

    def __init__(self, mpc: Mpc, register: Register, demand_p: Shares, demand_q: Shares) -> None:
        self.mpc, self.register, self.tree = mpc, register, register.limits.tree
        shape = (register.bus_count, register.interval_count, 2)
        self.demand_p, self.demand_q = demand_p.data.reshape(shape), demand_q.data.reshape(shape)
        half = self.tree.charging_pu / 2.0
        self.shunt = half.copy()
        fed = self.tree.parent >= 0
        np.add.at(self.shunt, self.tree.parent[fed], half[fed])
        slack = np.full((*shape[:2],), self.tree.slack_voltage_pu**2)
        self.voltage = self._public(slack)
        self.current = np.zeros(shape, np.uint64)
        self.flow_p = self.flow_q = self.current
        self.first_p = self.first_q = self.first_voltage = self.current
        self.wide_voltage = self.voltage
        self.off = self.bent = self.power = self.current

    def _public(self, values: "np.typing.NDArray[np.float64]") -> Words:
        steps = np.rint(values * 2.0**POWER_BITS).astype(np.int64).ravel()
        return self.mpc.constant(steps.tolist()).data.reshape(*values.shape, 2)

    def _times(self, values: "np.typing.NDArray[np.float64]", rows: Words) -> Words:
        """Multiply each bus's row with a public factor; 32 places become 62."""
        words = encode_words(factors(values))
        return np.array([_scale(words[[bus]], rows[bus]) for bus in range(len(rows))])

    def cut(self, parts: list[Words], bits: int) -> Steps[list[Words]]:
        """Round shared numbers down to fewer places."""
        flat = np.concatenate([part.reshape(-1, 2) for part in parts])
        wide = self.mpc.wrap(flat, COMPARED_BOUND // 2) + 2 ** (bits - 1)
        fine = yield from self.mpc.truncate(wide.claim(COMPARED_BOUND), bits)
        sizes = np.cumsum([part.size // 2 for part in parts])[:-1]
        found = np.split(fine.data, sizes)
        return [one.reshape(part.shape) for one, part in zip(found, parts, strict=True)]

    def products(self, pairs: list[tuple[Words, Words]]) -> Steps[list[Words]]:
        left = np.concatenate([one.reshape(-1, 2) for one, _ in pairs])
        right = np.concatenate([other.reshape(-1, 2) for _, other in pairs])
        bound = 2**38
        found = yield from self.mpc.multiply(
            self.mpc.wrap(left, bound), self.mpc.wrap(right, bound)
        )
        sizes = np.cumsum([one.size // 2 for one, _ in pairs])[:-1]
        parts = np.split(found.data, sizes)
        return [part.reshape(one.shape) for part, (one, _) in zip(parts, pairs, strict=True)]

    # -- one sweep ------------------------------------------------------------------------------

    def flows(self) -> Steps[None]:
        """Add up what flows through each branch at its far end, losses below it included."""
        wide_p = _scale_all(self.demand_p)
        charge = self._times(self.shunt, self.voltage)
        wide_q = _each(_subtract, _scale_all(self.demand_q), charge)
        loss_p = self._times(self.tree.resistance_pu, self.current)
        loss_q = self._times(self.tree.reactance_pu, self.current)
        for bus in reversed(self.tree.order[1:].tolist()):
            above = int(self.tree.parent[bus])
            wide_p[above] = _add(wide_p[above], _add(wide_p[bus], loss_p[bus]))
            wide_q[above] = _add(wide_q[above], _add(wide_q[bus], loss_q[bus]))
        self.flow_p, self.flow_q = yield from self.cut([wide_p, wide_q], FACTOR_BITS)

    def voltages(self) -> Steps[None]:
        """Follow the drops from the substation outwards."""
        tree = self.tree
        drop_p = self._times(2.0 * tree.resistance_pu, self.flow_p)
        drop_q = self._times(2.0 * tree.reactance_pu, self.flow_q)
        squared = tree.resistance_pu**2 + tree.reactance_pu**2
        drop_i = self._times(squared, self.current)
        wide = np.zeros_like(self.voltage)
        top = rounded_steps(tree.slack_voltage_pu**2, WIDE)
        wide[tree.root] = self.mpc.constant([top] * self.register.interval_count).data
        for bus in tree.order[1:].tolist():
            own = _add(_add(drop_p[bus], drop_q[bus]), drop_i[bus])
            wide[bus] = _subtract(wide[int(tree.parent[bus])], own)
        self.wide_voltage = wide
        (self.voltage,) = yield from self.cut([wide], FACTOR_BITS)

    def collapsed(self, lossless: Words) -> Steps[list[list[int]]]:
        """Open where losses take too much from a voltage for the sweeps to settle."""
        taken = _each(_subtract, lossless, self.wide_voltage).reshape(-1, 2)
        steps = self.mpc.constant([rounded_steps(LOSS_MAX_PU, WIDE)]).data
        most = np.repeat(steps, len(taken), axis=0)
        return (yield from _beyond(self.mpc, self.register, [_subtract(most, taken)]))

    def keep_lossless(self) -> None:
        """Keep what the first sweep found, which is LinDistFlow."""
        self.first_p, self.first_q = self.flow_p, self.flow_q
        self.first_voltage = self.voltage

    def squares(self) -> Steps[None]:
        """Square what branches carry, and by how much voltages differ from one."""
        off = _each(_subtract, self.voltage, self._one(self.voltage))
        pairs = [(off, off), (self.flow_p, self.flow_p), (self.flow_q, self.flow_q)]
        bent, active, reactive = yield from self.products(pairs)
        power = _each(_add, active, reactive)
        self.off = off
        self.bent, self.power = yield from self.cut([bent, power], POWER_BITS)

    def currents(self) -> Steps[None]:
        """Square the currents: squared flows over the voltage at the far end, squared."""
        off, bent, power = self.off, self.bent, self.power
        # 1 / (1 + e) = 1 - e + e^2 (1 - e + e^2) - ..., |e| < 0.2
        ramp = _each(_subtract, self._one(off), off)
        (rest,) = yield from self.products([(bent, _each(_add, ramp, bent))])
        (rest,) = yield from self.cut([rest], POWER_BITS)
        (current,) = yield from self.products([(power, _each(_add, ramp, rest))])
        (self.current,) = yield from self.cut([current], POWER_BITS)
        self.current[self.tree.root] = 0

    def _one(self, like: Words) -> Words:
        constant = self.mpc.constant([2**POWER_BITS]).data
        return np.repeat(constant, like.size // 2, axis=0).reshape(like.shape)

    # -- what has to hold -----------------------------------------------------------------------

    def ends(self) -> Steps[tuple[Words, Words]]:
        """Return squared apparent power at both ends of each branch, over its squared rating."""
        tree, rated = self.tree, self.register.limits.rated
        half = tree.charging_pu / 2.0
        above = np.where(tree.parent < 0, 0, tree.parent)
        charge_up = self._times(half, np.ascontiguousarray(self.voltage[above]))
        charge_down = self._times(half, self.voltage)
        far_q = _each(_add, _scale_all(self.flow_q), charge_down)
        near_p = _each(_add, _scale_all(self.flow_p), self._times(tree.resistance_pu, self.current))
        near_q = _each(_add, _scale_all(self.flow_q), self._times(tree.reactance_pu, self.current))
        near_q = _each(_subtract, near_q, charge_up)
        share = 1.0 / tree.rating_pu[rated]
        wide = [far_q[rated], near_p[rated], near_q[rated]]
        cut = yield from self.cut([np.ascontiguousarray(part) for part in wide], FACTOR_BITS)
        parts = [np.ascontiguousarray(self.flow_p[rated]), *cut]
        words = encode_words(factors(share))
        shares = [
            np.array([_scale(words[[row]], part[row]) for row in range(len(rated))])
            for part in parts
        ]
        own = yield from self.cut(shares, FACTOR_BITS)
        squares = yield from self.products([(part, part) for part in own])
        return _each(_add, squares[0], squares[1]), _each(_add, squares[2], squares[3])


def _each(work: Any, one: Words, other: Words) -> Words:
    flat = work(
        np.ascontiguousarray(one).reshape(-1, 2), np.ascontiguousarray(other).reshape(-1, 2)
    )
    return np.asarray(flat).reshape(one.shape)


def _scale_all(rows: Words) -> Words:
    flat = _scale(encode([2**FACTOR_BITS]), np.ascontiguousarray(rows).reshape(-1, 2))
    return np.asarray(flat).reshape(rows.shape)


def electrical_check(
    mpc: Mpc,
    register: Register,
    demand_p: Shares,
    demand_q: Shares,
    *,
    is_shown: bool = False,
) -> Steps[dict[str, Any]]:
    """Open whether net demands pass the AC power flow, and its extremes.

    Parameters
    ----------
    mpc, register
        Where to compute, and the public model; its planning margin is not used.
    demand_p, demand_q : (bus * interval,), scale 2**32 per-unit
        Net demands, bus by bus.
    is_shown
        Whether to open by how much the models differ at the places beyond limits [sealed 6.1].

    Returns
    -------
    dict
        ``vm_min_pu``, ``vm_max_pu`` (to 1e-4), ``loading_max`` (to 1e-3 where it is above 0.1;
        None without ratings), for people, not for the verdict; ``low`` and ``high``:
        (bus, interval) beyond voltage limits; ``over``: (bus, interval) of overloaded branches;
        ``moving``: voltages that had not settled; ``shown`` as in
        :func:`veilgrid.roles.sealed.narrowing.narrowed`. Where losses grow without end, as of
        :func:`untried`.
    """
    feeder = _Feeder(mpc, register, demand_p, demand_q)
    yield from feeder.flows()
    yield from feeder.voltages()
    feeder.keep_lossless()
    former, lossless = feeder.voltage, feeder.wide_voltage
    for sweep in range(SWEEPS):
        former = feeder.voltage
        if sweep == 1:
            asked = feeder.squares(), feeder.collapsed(lossless)
            _, places = yield from together(*asked)
            if places:
                return untried(places)
        else:
            yield from feeder.squares()
        yield from feeder.currents()
        yield from feeder.flows()
        yield from feeder.voltages()
    found = yield from _limits(mpc, register, feeder, former)
    least, most = yield from minimum_maximum(mpc, mpc.wrap(feeder.voltage.reshape(-1, 2), 2**40))
    ratings, loaded, heaviest = yield from _ratings(mpc, register, feeder)
    ends = np.concatenate([least.data, most.data])
    voltages, loading = yield from together(
        _coarse(mpc, feeder, ends, POWER_BITS), _coarse(mpc, feeder, heaviest, 2 * POWER_BITS)
    )
    found |= ratings | {
        "vm_min_pu": round(voltages[0] ** 0.5, 4),
        "vm_max_pu": round(voltages[1] ** 0.5, 4),
        "loading_max": round(loading[0] ** 0.5, 3) if loading else None,
    }
    if is_shown and has_places(found) and not found["moving"]:
        found["shown"] = yield from _shown(mpc, register, feeder, found, loaded)
    return found


def out_of_reach(
    mpc: Mpc, register: Register, demand_p: Shares, demand_q: Shares
) -> Steps[list[list[int]]]:
    """Open where net demands make flows or voltages so large that no power flow can be tried.

    Right for numbers of any size, as long as the sites' demands are within their ranges: a bid may
    ask for more than any line carries, and what it makes of others' numbers must not be compared.

    Returns
    -------
    list
        (bus, interval) where the lossless flow, without charging of lines, is beyond
        :data:`FLOW_MAX_PU` or :data:`LOADING_MAX`, or its voltage further from one than
        :data:`REACH_PU`.
    """
    tree, feeder = register.limits.tree, _Feeder(mpc, register, demand_p, demand_q)
    flows = [
        demand_p.data.reshape(feeder.demand_p.shape),
        demand_q.data.reshape(feeder.demand_q.shape),
    ]
    flows = [flow.copy() for flow in flows]
    for bus in reversed(tree.order[1:].tolist()):
        for flow in flows:
            above = int(tree.parent[bus])
            flow[above] = _add(flow[above], flow[bus])
    drop = _each(
        _add,
        feeder._times(2.0 * tree.resistance_pu, flows[0]),
        feeder._times(2.0 * tree.reactance_pu, flows[1]),
    )
    drop[tree.root] = 0
    for bus in tree.order[1:].tolist():
        drop[bus] = _add(drop[bus], drop[int(tree.parent[bus])])
    asked: list[Words] = []
    carried, rated = np.full(register.bus_count, FLOW_MAX_PU), register.limits.rated
    carried[rated] = np.minimum(FLOW_MAX_PU, LOADING_MAX * tree.rating_pu[rated])
    own, every = tree.slack_voltage_pu**2 - 1.0, np.ones(register.bus_count)
    for values, low, high, bits in (
        (flows[0], -carried, carried, POWER_BITS),
        (flows[1], -carried, carried, POWER_BITS),
        (drop, (own - REACH_PU) * every, (own + REACH_PU) * every, WIDE),
    ):
        flat = values.reshape(-1, 2)
        edges = [[rounded_steps(float(edge), bits) for edge in side] for side in (low, high)]
        times = register.interval_count
        least, most = (np.repeat(mpc.constant(side).data, times, axis=0) for side in edges)
        asked += [_subtract(flat, least), _subtract(most, flat)]
    return (yield from _beyond(mpc, register, asked))


def _beyond(mpc: Mpc, register: Register, rooms: list[Words]) -> Steps[list[list[int]]]:
    """Open at which (bus, interval) any of some rooms is below zero, right for any size."""
    if isinstance(mpc, Engine):
        whole = mpc.wrap(np.concatenate(rooms), COMPARED_BOUND)
        fine = np.array((yield from not_negative(mpc, whole, COMPARED_BOUND)), bool)
    else:
        fine = ~np.array((yield from below_zero(mpc, rooms)), bool)
    places = np.flatnonzero(~fine.reshape(len(rooms), -1).all(axis=0))
    times = register.interval_count
    return [[int(place // times), int(place % times)] for place in places]


def untried(places: list[list[int]]) -> dict[str, Any]:
    """Say that there is no power flow to speak of, as far as it can be tried, for these places."""
    nothing = dict.fromkeys(("vm_min_pu", "vm_max_pu", "loading_max"))
    return {"low": [], "high": [], "over": [], "moving": len(places), **nothing, "untried": places}


def _shown(
    mpc: Mpc, register: Register, feeder: _Feeder, found: dict[str, Any], ends: tuple[Words, Words]
) -> Steps[dict[str, Any]]:
    """Open by how much the models differ where limits are exceeded, in coarse steps.

    Voltages themselves stay shut: those of neighbouring buses would tell everybody what one site
    draws.
    """
    result: dict[str, Any] = {"low": [], "high": [], "over": []}
    places = [(name, *place) for name in ("low", "high") for place in found[name]]
    buses = np.array([bus for _, bus, _ in places], dtype=np.int64)
    times = np.array([time for *_, time in places], dtype=np.int64)
    if places:
        missed = _each(_subtract, feeder.first_voltage[buses, times], feeder.voltage[buses, times])
        numbers = yield from _coarse(mpc, feeder, missed, POWER_BITS)
        for (name, bus, time), number in zip(places, numbers, strict=True):
            result[name].append([bus, time, number])
    if found["over"]:
        result["over"] = yield from _shown_branches(mpc, register, feeder, found["over"], ends)
    return result


def _coarse(mpc: Mpc, feeder: _Feeder, numbers: Words, bits: int) -> Steps[list[float]]:
    """Open numbers of so many binary places, rounded to :data:`SHOWN_BITS`."""
    if not len(numbers):
        return []
    (cut,) = yield from feeder.cut([numbers], bits - SHOWN_BITS)
    opened = yield from mpc.open(mpc.wrap(np.ascontiguousarray(cut), 2**40))
    return [value / 2.0**SHOWN_BITS for value in opened]


def _shown_branches(
    mpc: Mpc,
    register: Register,
    feeder: _Feeder,
    over: list[list[int]],
    ends: tuple[Words, Words],
) -> Steps[list[list[float]]]:
    rated = register.limits.rated
    rows = np.searchsorted(rated, np.array([branch for branch, _ in over]))
    times = np.array([time for _, time in over], dtype=np.int64)
    share = encode_words(factors(1.0 / register.limits.tree.rating_pu[rated[rows]]))
    parts = [flow[rated[rows], times] for flow in (feeder.first_p, feeder.first_q)]
    scaled = [PRIME_FIELD.multiply(np.ascontiguousarray(part), share) for part in parts]
    own = yield from feeder.cut(scaled, FACTOR_BITS)
    squares = yield from feeder.products([(part, part) for part in own])
    linear = _add(*squares)
    missed = np.concatenate([_each(_subtract, end[rows, times], linear) for end in ends])
    numbers = yield from _coarse(mpc, feeder, missed, 2 * POWER_BITS)
    far, near = numbers[: len(over)], numbers[len(over) :]
    return [[*place, max(pair)] for place, *pair in zip(over, far, near, strict=True)]


def _limits(mpc: Mpc, register: Register, feeder: _Feeder, former: Words) -> Steps[dict[str, Any]]:
    """Compare voltages with their limits and with what they were a sweep ago."""
    network = register.voltage_limits
    flat = feeder.wide_voltage.reshape(-1, 2)
    asked: list[Words] = []
    for limit, sign in zip(network, (1.0, -1.0), strict=True):
        if limit is None:
            continue
        steps = rounded_steps(limit**2 - sign * TOLERANCE_PU, WIDE)
        ceiling = np.repeat(mpc.constant([steps]).data, len(flat), axis=0)
        asked.append(_subtract(flat, ceiling) if sign > 0 else _subtract(ceiling, flat))
    step = _subtract(feeder.voltage.reshape(-1, 2), former.reshape(-1, 2))
    still = mpc.constant([rounded_steps(STILL_PU, POWER_BITS)]).data
    allowed = np.repeat(still, len(step), axis=0)
    asked += [_add(allowed, step), _subtract(allowed, step)]
    bits = np.array((yield from below_zero(mpc, asked))).reshape(len(asked), len(flat))
    rows = list(bits)
    result: dict[str, Any] = {"low": [], "high": []}
    times = register.interval_count
    for name, limit in zip(("low", "high"), network, strict=True):
        if limit is not None:
            places = np.flatnonzero(rows.pop(0))
            result[name] = [[int(place // times), int(place % times)] for place in places]
    result["moving"] = int(sum(int(row.sum()) for row in rows))
    return result


def _ratings(
    mpc: Mpc, register: Register, feeder: _Feeder
) -> Steps[tuple[dict[str, Any], tuple[Words, Words], Words]]:
    """Compare both ends' apparent power with the ratings; return it, and the largest, as well."""
    rated = register.limits.rated
    if not len(rated):
        return {"over": []}, (feeder.current, feeder.current), PRIME_FIELD.zeros(0)
    far, near = yield from feeder.ends()
    whole = np.concatenate([far.reshape(-1, 2), near.reshape(-1, 2)])
    steps = rounded_steps(1.0 + TOLERANCE_PU, 2 * POWER_BITS)
    ceiling = np.repeat(mpc.constant([steps]).data, len(whole), axis=0)
    bits = yield from below_zero(mpc, [_subtract(ceiling, whole)])
    half, times = len(whole) // 2, register.interval_count
    places = sorted({place % half for place, bit in enumerate(bits) if bit})
    over = [[int(rated[place // times]), place % times] for place in places]
    _, most = yield from minimum_maximum(mpc, mpc.wrap(whole, COMPARED_BOUND // 4))
    return {"over": over}, (far, near), most.data
