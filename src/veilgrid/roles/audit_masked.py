"""Attacks on what workers, validators and the coordinator held of a masked site [masking 8].

The day is run, what each role held is kept and attacked with :mod:`veilgrid.qp.leak`, and the
result is scored against the truth.
"""

from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from veilgrid.admm.exchange import ExchangeSettings, Metric
from veilgrid.admm.masked_site import SiteForm, site_form
from veilgrid.errors import invariant
from veilgrid.grid.day import Day
from veilgrid.grid.lindistflow import Limits
from veilgrid.grid.network import Floats
from veilgrid.grid.site import Site, Span
from veilgrid.qp import leak
from veilgrid.qp.mask import EVERY_OPTION, Mask, MaskedProblem, draw_mask
from veilgrid.roles.audit_public import audit_public
from veilgrid.roles.audit_score import EXACT, Recovered, energy_of, nothing, powers_of, scored
from veilgrid.roles.masked import plan_masked
from veilgrid.roles.masked_record import Watched
from veilgrid.secret import Randomness

PROBE_COUNT = 12
"""Linear programs per kind of attack: a sample keeps an audit short."""


@dataclass
class _Held:
    """What the masked run left with workers, validators and the coordinator about one site."""

    watched: list[Watched] = field(default_factory=list)

    def keep(self, watched: Watched) -> None:
        self.watched.append(watched)


class _Evidence(NamedTuple):
    """One site's masked problem, its solution, and the truth behind them."""

    form: SiteForm
    problem: MaskedProblem
    y: Floats
    x: Floats
    demand_p: Floats


def audit_masked(
    day: Day, limits: Limits, site: int, draw: Randomness, other: Day | None = None
) -> list[Recovered]:
    if site not in day.flexible:
        own = day.sites[site]
        load = own.load_p * day.network.base_mva
        how = "a site without choice declares it"
        return [
            scored("net demand", "coordinator", load.copy(), load, "MW", how),
            nothing("load", "worker", load, "MW", "no problem of this site is solved"),
        ]
    held = _Held()
    outcome = plan_masked(day, limits, draw, watch=held.keep)
    place = day.flexible.index(site)
    last = held.watched[-1]
    form = _form_of(day, limits, site)
    evidence = _evidence(day, form, last, place, site)
    found = _slack_identities(day, limits, last)
    for role in ("worker", "validator"):
        found += _attack_plain(day, evidence, role)
    found += _attack_coordinator(day, evidence)
    found.append(_link(day, limits, day if other is None else other, site, draw))
    found += _attack_options(day, evidence, draw)
    found += audit_public(day, outcome.coordination, site, evidence.problem)
    return found


def _form_of(day: Day, limits: Limits, site: int) -> SiteForm:
    settings = ExchangeSettings()
    metric = Metric.of(day, limits, settings.penalty, settings.evenness)
    place = day.flexible.index(site)
    return site_form(day.sites[site], float(metric.active[place]), float(metric.reactive[place]))


def _evidence(day: Day, form: SiteForm, last: Watched, place: int, site: int) -> _Evidence:
    y = last.records[place].submission.solution.values
    problem = last.problems[place]
    x = last.solutions[place][: form.own_count]
    return _Evidence(form, problem, y, x, day.sites[site].demand_p(x))


def _slack_identities(day: Day, limits: Limits, last: Watched) -> list[Recovered]:
    """Show ``h' - G'y = h - Gx`` on every site whose net demand the coordinator recovered."""
    worst, count, good = 0.0, 0, 0
    for place, site in enumerate(day.flexible):
        form = _form_of(day, limits, site)
        y = last.records[place].submission.solution.values
        shown = leak.slacks(last.problems[place], y)
        x = last.solutions[place]
        off = float(np.max(np.abs(shown - (form.problem.bound - form.problem.matrix @ x))))
        worst, count, good = max(worst, off), count + 1, good + int(off <= 1e-9)
    return [
        Recovered(
            "slack identity, all sites", "worker", worst, good / count, "per-unit", "h' - G'y"
        )
    ]


class _Bounds(NamedTuple):
    """What slacks of lower and upper bounds tell: position above the minimum, and the range."""

    above: Floats
    width: Floats
    basis: Floats


def _bounds(evidence: _Evidence) -> _Bounds:
    """Read the published rows in the order of the source paper: lower bounds, upper bounds."""
    own, problem = evidence.form.own_count, evidence.problem
    site = evidence.form.site
    shown = leak.slacks(problem, evidence.y)
    lower, upper = np.isfinite(site.lower), np.isfinite(site.upper)
    above, to_top = np.full(own, np.nan), np.full(own, np.nan)
    above[lower] = shown[: lower.sum()]
    to_top[upper] = shown[lower.sum() : lower.sum() + upper.sum()]
    basis = np.full((own, problem.matrix.shape[1]), np.nan)
    basis[lower] = -problem.matrix[: lower.sum()]
    basis[upper] = problem.matrix[lower.sum() : lower.sum() + upper.sum()]
    return _Bounds(above, above + to_top, basis)


def _attack_plain(day: Day, evidence: _Evidence, role: str) -> list[Recovered]:
    """Read schedules, forecasts, batteries and costs off the rows as the source paper has them."""
    base, count = day.network.base_mva, day.interval_count
    site, bounds = evidence.form.site, _bounds(evidence)
    powers = powers_of(site.spans, count)
    found = [
        scored(
            "schedule",
            role,
            bounds.above[powers] * base,
            evidence.x[powers] * base,
            "MW",
            "slack of the lower bound; a minimum above zero stays hidden",
        )
    ]
    for quantity, kinds, group, guess in (
        ("forecast", ("pv", "wind"), "p", bounds.width),
        ("generator range", ("generator",), "p", bounds.width),
        ("battery size", ("battery",), "energy", bounds.width),
        ("battery path", ("battery",), "energy", _paths(site.spans, bounds, count)),
    ):
        spans = [s for s in site.spans if s.kind in kinds and s.group == group]
        where = [np.arange(s.start, s.start + count) for s in spans]
        if not where:
            continue
        chosen = np.concatenate(where)
        span = (site.upper - site.lower)[chosen]
        truth = evidence.x[chosen] if quantity == "battery path" else span
        unit = "MWh" if quantity.startswith("battery") else "MW"
        if quantity == "battery size":  # The last interval's floor makes its box smaller.
            chosen, truth = chosen[: count - 1], span[: count - 1]
        how = "sum of both bounds' slacks" if quantity != "battery path" else "slack"
        found.append(scored(quantity, role, guess[chosen] * base, truth * base, unit, how))
    load = site.load_p * base
    found.append(nothing("load", role, load, "MW", "only its sum with the target shows"))
    found += _efficiencies(site, bounds, count, role)
    return found + _attack_costs(day, evidence, bounds, role)


def _efficiencies(site: Site, bounds: _Bounds, count: int, role: str) -> list[Recovered]:
    """Solve each battery's equation for its efficiencies: published rows satisfy it.

    ``e_t - e_(t-1) = eta_c dt charge_t - dt / eta_d discharge_t`` holds for rows of ``N R`` too.
    """
    starts: dict[str, list[int]] = {}
    for span in site.spans:
        if span.kind == "battery":
            starts.setdefault(span.group, []).append(span.start)
    guess, truth = [], []
    for energy, charge, discharge in zip(
        *(starts.get(group, []) for group in ("energy", "charge", "discharge")), strict=True
    ):
        later = np.arange(1, count)
        rows = [bounds.basis[start + later] for start in (energy, charge, discharge)]
        change = rows[0] - bounds.basis[energy + later - 1]
        both = np.stack([rows[1].ravel(), rows[2].ravel()], axis=1)
        guess += np.linalg.lstsq(both, change.ravel(), rcond=None)[0].tolist()
        column = site.matrix.tocsc()[:, energy + 1]
        storage = site.matrix.tocsr()[int(column.indices[column.data > 0.0][0])].toarray().ravel()
        truth += (-storage[[charge + 1, discharge + 1]] / storage[energy + 1]).tolist()
    if not guess or not np.isfinite(guess).all():
        return []
    how = "stored energy a unit of power, from the equation that the rows of N R satisfy"
    return [scored("battery efficiencies", role, np.array(guess), np.array(truth), "hours", how)]


def _paths(spans: tuple[Span, ...], bounds: _Bounds, count: int) -> Floats:
    """Return stored energy: the size, seen first, less the slack of the upper bound."""
    path = bounds.above.copy()
    for span in spans:
        chosen = slice(span.start, span.start + count)
        path[chosen] += bounds.width[span.start] - bounds.width[chosen]
    return path


def _attack_costs(day: Day, evidence: _Evidence, bounds: _Bounds, role: str) -> list[Recovered]:
    """Fit cost coefficients of each device group in H' and c'."""
    site, problem, form = evidence.form.site, evidence.problem, evidence.form
    if not np.isfinite(bounds.basis).all():
        return []
    count, energy = day.interval_count, energy_of(day)
    groups = []
    for span in site.spans:
        shape = np.zeros(form.own_count)
        shape[span.start : span.start + count] = 1.0
        groups.append(shape)
    injects = [site.inject_p, site.inject_q][: 2 if form.has_reactive else 1]
    flows = [np.asarray(-(inject @ bounds.basis)) for inject in injects]
    whole = np.concatenate([bounds.basis, *flows])
    shapes = [np.concatenate([g, np.zeros(len(flows) * count)]) for g in groups]
    pull = np.zeros(len(whole))
    pull[form.own_count :] = 1.0
    values = leak.quadratic_costs(problem, whole, [*shapes, pull])
    truth = np.array([site.quadratic[span.start] for span in site.spans])
    quadratic = scored(
        "cost coefficients, quadratic",
        role,
        values[:-1] / (energy * day.network.base_mva),
        truth / (energy * day.network.base_mva),
        f"{day.currency}/MWh/MW",
        "least squares on H' with the rows of N R that G' publishes",
    )
    # c' = B'(c + H x0) + D'(price - penalty target); at the end target = demand, so the penalty
    # part is known without the load, and the price is taken to be the public tariff.
    bound_lower = np.isfinite(site.lower)
    origin = np.where(bound_lower, problem.bound[: bound_lower.sum()], 0.0)
    start = -(injects[0] @ (origin - bounds.above)) * values[-1]
    rest = problem.linear - bounds.basis.T @ ((np.stack(groups).T @ values[:-1]) * origin)
    rest = rest - flows[0].T @ (start + day.buy)
    if form.has_reactive:
        rest = rest + flows[1].T @ (injects[1] @ (origin - bounds.above)) * values[-1]
    guess = leak.linear_costs(rest, bounds.basis, groups)
    truth = np.array([site.linear[span.start] for span in site.spans])
    linear = scored(
        "cost coefficients, linear",
        role,
        guess / energy,
        truth / energy,
        f"{day.currency}/MWh",
        "least squares on c' at the end, tariff taken for the price",
    )
    return [quadratic, linear]


def _attack_coordinator(day: Day, evidence: _Evidence) -> list[Recovered]:
    """Use the recovery rows, and with what lies beside the ledger the load."""
    base, site = day.network.base_mva, evidence.form.site
    demand = evidence.demand_p * base
    above = _bounds(evidence).above
    guess = (evidence.demand_p + site.inject_p @ np.nan_to_num(above)) * base
    return [
        scored("net demand", "coordinator", demand.copy(), demand, "MW", "recovery rows"),
        scored(
            "load",
            "coordinator with what workers hold",
            guess,
            site.load_p * base,
            "MW",
            "net demand plus the schedule of its devices",
        ),
    ]


def _link(day: Day, limits: Limits, other: Day, site: int, draw: Randomness) -> Recovered:
    """Mask a site on one day and all sites on another; look for the site among all of them.

    Workers hold the problem without penalty too: range(G') and the generalised eigenvalues of its
    H' stay what they are under any mask, and while devices and their costs stay, on any day.
    """

    def shown(form: SiteForm) -> MaskedProblem:
        key = draw_mask(form.problem, draw)
        return replace(key.masked(), quadratic=key.quadratic(form.cheapest))

    mine = _form_of(day, limits, site)
    first = shown(mine)
    print_one = leak.fingerprint(first)
    angles: dict[str, float] = {}
    alike = []
    for index in other.flexible:
        form = _form_of(other, limits, index)
        if form.problem.matrix.shape != mine.problem.matrix.shape:
            continue
        second = shown(form)
        name = str(other.sites[index].name)
        angles[name] = leak.subspace_angle(first.matrix, second.matrix)
        off = np.abs(leak.fingerprint(second) - print_one) / np.maximum(np.abs(print_one), 1.0)
        if angles[name] <= 1e-6 and float(np.max(off)) <= 1e-6:
            alike.append(name)
    own = str(day.sites[site].name)
    when = "the same day masked anew" if other is day else "another day"
    return Recovered(
        "linkability between days",
        "worker",
        angles.get(own, np.inf),
        1.0 / len(alike) if own in alike else 0.0,
        "rad",
        f"range(G') and eigenvalues, {when}: {len(alike)} of {len(other.flexible)} sites fit",
    )


# Options on: scaling, permutation, decoys.


def _attack_options(day: Day, evidence: _Evidence, draw: Randomness) -> list[Recovered]:
    """Mask the same bid with every option and attack again."""
    form = evidence.form
    key = draw_mask(form.problem, draw, EVERY_OPTION)
    problem = key.masked()
    y = _masked_point(key, form, evidence)
    pairs = leak.opposite_pairs(problem)
    truth = _true_pairs(key, form)
    variable = np.array([truth.get(int(row), -1) for row in pairs.second])
    is_true = (variable >= 0) & (pairs.width > 1e-9)
    position = pairs.position(problem, y)
    site = form.site
    span = (site.upper - site.lower)[np.maximum(variable, 0)]
    inside = (evidence.x - site.lower)[np.maximum(variable, 0)] / np.where(span > 0.0, span, 1.0)
    forward = np.minimum(np.abs(position - inside), np.abs(1.0 - position - inside))
    chosen = forward[is_true]
    boxes = int(np.sum(site.upper - site.lower > 1e-9))
    found = [
        Recovered(
            "schedule as share of its range",
            "worker",
            float(np.max(chosen, initial=0.0)),
            float(np.sum(chosen <= EXACT)) / max(1, boxes),
            "share",
            "opposite rows are matched; the unit (kW) stays hidden",
            options=True,
        )
    ]
    return [*found, _decoys(problem, truth, pairs), *_equations(day, form, pairs, variable)]


def _masked_point(key: Mask, form: SiteForm, evidence: _Evidence) -> Floats:
    """Return the masked solution under another key: what its worker would have returned."""
    whole = np.concatenate([evidence.x, form.site.demand_p(evidence.x)])
    if form.has_reactive:
        whole = np.concatenate([whole, form.site.demand_q(evidence.x)])
    rows = key.rows_for(slice(None))
    return np.asarray(np.linalg.lstsq(rows.matrix, whole - rows.offset, rcond=None)[0])


def _true_pairs(key: Mask, form: SiteForm) -> dict[int, int]:
    """Map published rows to the variable whose bound they are; decoys and other rows are absent."""
    own = form.own_count
    finite_low = np.flatnonzero(np.isfinite(form.site.lower))
    finite_high = np.flatnonzero(np.isfinite(form.site.upper))
    of_row = np.concatenate([finite_low, finite_high])
    invariant(len(of_row) <= 2 * own, "at most two bounds a variable")
    found = {}
    for row, source in key.true_rows().items():
        if source < len(of_row):
            found[row] = int(of_row[source])
    return found


def _decoys(problem: MaskedProblem, truth: dict[int, int], pairs: leak.Pairs) -> Recovered:
    """Ask linear programs which rows can never bind, on a sample."""
    rows = np.concatenate([pairs.first, pairs.second])
    rows = rows[:: max(1, len(rows) // PROBE_COUNT)][:PROBE_COUNT]
    right = [leak.is_redundant(problem, int(row)) == (int(row) not in truth) for row in rows]
    return Recovered(
        "which rows are decoys",
        "worker",
        0.0 if all(right) else 1.0,
        float(np.mean(right)) if right else 0.0,
        "share",
        f"linear programs on {len(rows)} rows",
        options=True,
    )


def _equations(
    day: Day, form: SiteForm, pairs: leak.Pairs, variable: "np.ndarray"
) -> list[Recovered]:
    """Look for a battery's equations as sparse relations between scaled rows, on a sample."""
    site, count = form.site, day.interval_count
    energies = [s for s in site.spans if s.kind == "battery" and s.group == "energy"]
    usable = pairs.width > 1e-9
    directions = pairs.direction[usable] / pairs.width[usable, np.newaxis]
    place_of = {int(v): k for k, v in enumerate(variable[usable]) if v >= 0}
    hits = tried = 0
    for span in energies:
        steps = np.linspace(1, count - 2, min(PROBE_COUNT, max(1, count - 2))).astype(int)
        for step in np.unique(steps):
            target = place_of.get(span.start + int(step))
            if target is None:
                continue
            tried += 1
            relation = leak.sparse_relation(directions, target)
            support = {int(variable[usable][k]) for k in np.flatnonzero(np.abs(relation) > 1e-7)}
            row = site.matrix.tocsr()[_row_of(form, span.start + int(step))]
            later = site.matrix.tocsr()[_row_of(form, span.start + int(step) + 1)]
            hits += support in ({int(c) for c in row.indices}, {int(c) for c in later.indices})
    if not tried:
        return []
    how = f"least-absolute-sum relations: {hits} of {tried} tried"
    return [
        Recovered(
            "battery equations",
            "worker",
            0.0 if hits == tried else 1.0,
            hits / tried,
            "share",
            how,
            options=True,
        )
    ]


def _row_of(form: SiteForm, variable: int) -> int:
    """Return the storage row in which a stored energy has weight one."""
    column = form.site.matrix.tocsc()[:, variable]
    rows = column.indices[column.data > 0.0]
    return int(rows[0])
