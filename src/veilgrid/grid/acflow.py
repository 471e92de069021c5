"""AC power flow on a radial network, all intervals at once, and the electrical sanity check.

Backward/forward sweep with constant-power demands: the current that bus c draws is
``conj(S_c / V_c) + Y_c V_c``, a branch carries its child's current and those of the child's
branches, and ``V_c = V_p - z_c J_c``; repeated until the voltages stand still [model 7]. Line
charging is half a branch's susceptance at each of its ends.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numba import njit
from numpy.typing import NDArray

from veilgrid.errors import Finding, invariant
from veilgrid.grid._table import several
from veilgrid.grid.network import Floats, Integers, Network, Tree

Complexes = NDArray[np.complex128]

TOLERANCE_PU = 1e-13
"""Change of a voltage between two sweeps below which it stands still, per-unit."""
STALLED_PU = 1e-10
"""Last change up to which an interval counts as converged although rounding keeps it moving."""
ITERATION_COUNT_MAX = 200
LIMIT_TOLERANCE_PU = 1e-6
"""What a voltage or a loading may exceed its limit by: rounding, not physics."""


@dataclass(frozen=True, kw_only=True)
class AcState:
    """Voltages and currents of a radial network.

    Attributes
    ----------
    voltage : (bus, interval), per-unit, complex
        The substation's angle is zero.
    current : (branch, interval), per-unit, complex
        Through the series impedance of the branch that feeds the bus, parent to child. The
        substation's row is what the network as a whole draws.
    power : (branch, interval), per-unit, complex
        Apparent power that enters the branch at its parent. The substation's row is the exchange
        with the grid above, import positive.
    loading : (branch, interval), per-unit of the rating
        The larger of both ends; 0 for unlimited branches.
    losses : (interval,), per-unit
        Active power that the branches turn into heat.
    iteration_count
        Sweeps until all intervals stood still, or the limit.
    is_converged : (interval,)
        Where False, no power flow was found: the demand is beyond what the network can carry.
    mismatch_pu
        Largest difference between a bus's demand and what the currents bring it, over the
        intervals that converged.
    """

    voltage: Complexes = field(repr=False)
    current: Complexes = field(repr=False)
    power: Complexes = field(repr=False)
    loading: Floats = field(repr=False)
    losses: Floats = field(repr=False)
    iteration_count: int
    is_converged: NDArray[np.bool_] = field(repr=False)
    mismatch_pu: float

    @property
    def magnitude(self) -> Floats:
        """Voltage magnitudes (bus, interval), per-unit."""
        return np.abs(self.voltage)


@dataclass(frozen=True, kw_only=True)
class ElectricalCheck:
    """Whether set-points meet Kirchhoff's laws, voltage limits and ratings [model 7].

    Attributes
    ----------
    vm_min_pu, vm_max_pu
        Over all buses and the intervals that have a power flow; 0 if none has.
    loading_max
        Per-unit of the rating; ``None`` if no branch is rated.
    findings
        One for each bus or branch beyond its limit, naming its worst interval.
    mismatch_pu
        See :class:`AcState`.
    """

    passed: bool
    vm_min_pu: float
    vm_max_pu: float
    loading_max: float | None
    findings: tuple[Finding, ...]
    mismatch_pu: float


def ac_flow(
    tree: Tree,
    demand_p: Floats,
    demand_q: Floats,
    *,
    tolerance_pu: float = TOLERANCE_PU,
    iteration_count_max: int = ITERATION_COUNT_MAX,
) -> AcState:
    """Compute the AC power flow of net demands.

    Parameters
    ----------
    tree
        The network.
    demand_p, demand_q : (bus, interval), per-unit
        Net demand (load minus injection) of each bus.
    tolerance_pu : > 0, per-unit
        Largest change of a voltage between the last two sweeps.
    iteration_count_max : > 0
        Sweeps after which an interval counts as not converged.

    Returns
    -------
    AcState
        A collapse of the voltage is an outcome: see ``is_converged``.
    """
    count = len(tree)
    invariant(demand_p.shape == demand_q.shape, "one reactive demand for each active demand")
    invariant(demand_p.ndim == 2 and len(demand_p) == count, "one demand for each bus and interval")
    invariant(bool(np.isfinite(demand_p).all()), "active demands are finite")
    invariant(bool(np.isfinite(demand_q).all()), "reactive demands are finite")
    half = tree.charging_pu / 2.0
    shunt = half.copy()
    fed = tree.parent >= 0
    np.add.at(shunt, tree.parent[fed], half[fed])
    impedance = tree.resistance_pu, tree.reactance_pu
    active = np.ascontiguousarray(demand_p, dtype=np.float64)
    reactive = np.ascontiguousarray(demand_q, dtype=np.float64)
    shape = active.shape
    real, imaginary, along, across = (np.empty(shape) for _ in range(4))
    change = np.empty(shape[1])
    iteration_count = _sweep(
        *(tree.order, tree.parent, *impedance, shunt, tree.slack_voltage_pu),
        *(active, reactive, tolerance_pu, iteration_count_max),
        *(real, imaginary, along, across, change),
    )
    voltage, current = real + 1j * imaginary, along + 1j * across
    is_converged = change <= max(tolerance_pu, STALLED_PU)
    return _state(tree, active + 1j * reactive, voltage, current, is_converged, iteration_count)


@njit(cache=True, error_model="numpy")  # type: ignore[untyped-decorator]
def _sweep(
    order: NDArray[np.int64],
    parent: NDArray[np.int64],
    resistance: Floats,
    reactance: Floats,
    shunt: Floats,
    slack: float,
    active: Floats,
    reactive: Floats,
    tolerance: float,
    iteration_count_max: int,
    real: Floats,
    imaginary: Floats,
    along: Floats,
    across: Floats,
    change: Floats,
) -> int:
    """Fill voltages (real, imaginary), currents (along, across) and the last change."""
    bus_count, interval_count = active.shape
    real[:] = slack
    imaginary[:] = 0.0
    iteration = 0
    while iteration < iteration_count_max:
        iteration += 1
        for bus in range(bus_count):
            for t in range(interval_count):
                x, y = real[bus, t], imaginary[bus, t]
                scale = 1.0 / (x * x + y * y)
                p, q = active[bus, t] * scale, reactive[bus, t] * scale
                along[bus, t] = p * x + q * y - shunt[bus] * y
                across[bus, t] = p * y - q * x + shunt[bus] * x
        for position in range(bus_count - 1, 0, -1):
            bus = order[position]
            above = parent[bus]
            for t in range(interval_count):
                along[above, t] += along[bus, t]
                across[above, t] += across[bus, t]
        change[:] = 0.0
        for position in range(1, bus_count):
            bus = order[position]
            above, r, x = parent[bus], resistance[bus], reactance[bus]
            for t in range(interval_count):
                a, b = along[bus, t], across[bus, t]
                new_real = real[above, t] - r * a + x * b
                new_imaginary = imaginary[above, t] - r * b - x * a
                moved = abs(new_real - real[bus, t]) + abs(new_imaginary - imaginary[bus, t])
                # Written so that NaN stays: a collapsed interval never counts as converged.
                change[t] = change[t] if moved <= change[t] else moved
                real[bus, t] = new_real
                imaginary[bus, t] = new_imaginary
        worst = 0.0
        for t in range(interval_count):
            worst = worst if change[t] <= worst else change[t]
        if worst <= tolerance:
            break
    return iteration


def _state(
    tree: Tree,
    demand: Complexes,
    voltage: Complexes,
    current: Complexes,
    is_converged: NDArray[np.bool_],
    iteration_count: int,
) -> AcState:
    """Recompute powers and the mismatch from voltages and currents alone."""
    fed = tree.order[1:]
    above = tree.parent[fed]
    half = 0.5j * tree.charging_pu[fed, np.newaxis]
    with np.errstate(all="ignore"):  # Intervals without a power flow hold infinities.
        entering = voltage[above] * np.conj(current[fed] + half * voltage[above])
        leaving = voltage[fed] * np.conj(current[fed] - half * voltage[fed])
        power = np.zeros_like(voltage)
        power[fed] = entering
        arriving = np.zeros_like(voltage)
        arriving[fed] = leaving
        np.subtract.at(arriving, above, entering)
        power[tree.root] = demand[tree.root] - arriving[tree.root]
        arriving[tree.root] = demand[tree.root]
        gap = np.abs(arriving - demand)[:, is_converged]
        losses = tree.resistance_pu[fed] @ np.abs(current[fed]) ** 2
        loading = np.zeros(voltage.shape)
        rating = tree.rating_pu[fed, np.newaxis]
        loading[fed] = np.maximum(np.abs(entering), np.abs(leaving)) / rating
    return AcState(
        voltage=voltage,
        current=current,
        power=power,
        loading=loading,
        losses=losses,
        iteration_count=iteration_count,
        is_converged=is_converged,
        mismatch_pu=float(gap.max(initial=0.0)),
    )


def electrical_check(network: Network, demand_p: Floats, demand_q: Floats) -> ElectricalCheck:
    """Check net demands (bus, interval), per-unit, against physics and the network's limits.

    The planning margin plays no part: limits are those of the network itself. The substation's own
    voltage is given, not limited.
    """
    tree = network.tree
    state = ac_flow(tree, demand_p, demand_q)
    names = [str(bus.name) for bus in network.buses]
    good = state.is_converged
    findings: list[Finding] = []
    if not good.all():
        lost = np.flatnonzero(~good)
        findings.append(
            Finding(
                f"interval {several(lost)}",
                "no AC power flow exists: the voltage collapses",
                "the demands are beyond what the network can carry",
            )
        )
    magnitude = state.magnitude[:, good]
    intervals = np.flatnonzero(good)
    if not len(intervals):
        return ElectricalCheck(
            passed=False,
            vm_min_pu=0.0,
            vm_max_pu=0.0,
            loading_max=None,
            findings=tuple(findings),
            mismatch_pu=0.0,
        )
    loading = state.loading[:, good]
    findings.extend(_voltage_findings(network, names, magnitude, intervals))
    findings.extend(_loading_findings(network, names, loading, intervals))
    is_rated = bool(np.isfinite(tree.rating_pu).any())
    return ElectricalCheck(
        passed=not findings,
        vm_min_pu=float(magnitude.min()),
        vm_max_pu=float(magnitude.max()),
        loading_max=float(loading.max()) if is_rated else None,
        findings=tuple(findings),
        mismatch_pu=state.mismatch_pu,
    )


def _voltage_findings(
    network: Network, names: list[str], magnitude: Floats, intervals: Integers
) -> Iterator[Finding]:
    low, high = network.voltage_min_pu, network.voltage_max_pu
    for bus in network.tree.order[1:]:
        least, most = int(magnitude[bus].argmin()), int(magnitude[bus].argmax())
        for position, sign, limit, what in ((least, -1, low, "min"), (most, 1, high, "max")):
            value = float(magnitude[bus, position])
            if limit is not None and sign * (value - limit) > LIMIT_TOLERANCE_PU:
                here = f"bus {names[bus]}, interval {intervals[position]}"
                yield Finding(here, f"voltage {value:.5f} pu, voltage_{what}_pu is {limit}")


def _loading_findings(
    network: Network, names: list[str], loading: Floats, intervals: Integers
) -> Iterator[Finding]:
    tree = network.tree
    for bus in tree.order[1:]:
        position = int(loading[bus].argmax())
        if loading[bus, position] > 1.0 + LIMIT_TOLERANCE_PU:
            here = f"branch {names[tree.parent[bus]]}->{names[bus]}"
            rating = tree.rating_pu[bus] * network.base_mva
            share = 100.0 * loading[bus, position]
            problem = f"loaded to {share:.2f} % of its {rating:.6g} MVA"
            yield Finding(f"{here}, interval {intervals[position]}", problem)
