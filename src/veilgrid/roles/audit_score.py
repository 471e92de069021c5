"""How much of a quantity a role got: what audits report [masking 8]."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from veilgrid.errors import invariant
from veilgrid.grid.day import Day
from veilgrid.grid.network import Floats
from veilgrid.grid.site import Span

EXACT = 1e-6
"""An entry counts as recovered if it is within this of the truth, relative to the largest."""


class Recovered(NamedTuple):
    """How much of one quantity a role got.

    Attributes
    ----------
    quantity, role
        What, and who.
    max_error
        Largest difference from the truth, in the quantity's unit.
    share_recovered : in [0, 1]
        Part of the entries within :data:`EXACT` of the truth.
    unit
        Of the error.
    how
        The attack, in a few words.
    options
        Whether row scaling, permutation and decoys were on.
    baseline_error
        Of who sees nothing; ``None`` where nobody compared.
    is_in_table
        Whether the scheme says that this opens: then finding it is no leak.
    """

    quantity: str
    role: str
    max_error: float
    share_recovered: float
    unit: str
    how: str
    options: bool = False
    baseline_error: float | None = None
    is_in_table: bool = False


class Target(NamedTuple):
    """What is attacked: where a quantity lies in a vector, and the truth."""

    quantity: str
    task: int
    name: str
    places: "np.typing.NDArray[np.int64]"
    truth: Floats
    unit: str
    factor: float


def scored(
    quantity: str,
    role: str,
    guess: Floats,
    truth: Floats,
    unit: str,
    how: str,
    *,
    options: bool = False,
) -> Recovered:
    """Score a guess against the truth, arrays of one shape."""
    invariant(guess.shape == truth.shape, "a guess has the shape of the truth")
    error = np.abs(guess - truth)
    error = np.where(np.isfinite(error), error, np.inf)
    size = max(float(np.max(np.abs(truth), initial=0.0)), 1e-3)
    share = float(np.mean(error <= EXACT * size)) if error.size else 0.0
    return Recovered(quantity, role, float(np.max(error, initial=0.0)), share, unit, how, options)


def nothing(quantity: str, role: str, truth: Floats, unit: str, how: str) -> Recovered:
    """Score a role that has nothing better than to guess zero; zeros guessed do not count."""
    worst = float(np.max(np.abs(truth), initial=0.0))
    return Recovered(quantity, role, worst, 0.0, unit, how)


def beside(target: Target, role: str, guess: Floats, how: str) -> Recovered:
    """Score a guess beside that of who sees nothing: zero, or the mean of half of the truth.

    Entries that are zero count for nobody.
    """
    truth = target.truth
    row = scored(target.quantity, role, guess, truth, target.unit, how)
    worst = float(np.max(np.abs(truth), initial=0.0))
    counts = np.abs(truth) > EXACT * max(worst, 1e-3)
    if counts.any():
        own = scored("", "", guess[counts], truth[counts], "", "").share_recovered
        row = row._replace(share_recovered=own)
    else:
        row = row._replace(share_recovered=0.0)
    plain = float(np.max(np.abs(fitted([], truth) - truth), initial=0.0))
    return row._replace(baseline_error=min(worst, plain))


def best(rows: Sequence[Recovered]) -> Recovered:
    """Return the most successful attack."""
    return max(rows, key=lambda row: (row.share_recovered, -row.max_error))


def fitted(columns: Sequence[Floats], truth: Floats) -> Floats:
    """Predict each half of the truth from the other half and the columns."""
    table = np.stack([*columns, np.ones_like(truth)], axis=1)
    scale = np.abs(table).max(axis=0)
    table = table / np.where(scale > 0.0, scale, 1.0)
    half = np.arange(len(truth)) % 2 == 0
    out = np.zeros_like(truth)
    for chosen in (half, ~half):
        if chosen.any() and (~chosen).any():
            weights = np.linalg.lstsq(table[~chosen], truth[~chosen], rcond=None)[0]
            out[chosen] = table[chosen] @ weights
    return out


def is_told_by_half(truth: Floats) -> bool:
    """Whether half of the truth tells the other half by itself, as of a constant."""
    size = max(float(np.max(np.abs(truth), initial=0.0)), 1e-3)
    return bool(np.max(np.abs(fitted([], truth) - truth), initial=0.0) <= EXACT * size)


def energy_of(day: Day) -> float:
    """Return the energy of one per-unit over one interval, MWh."""
    return day.horizon.hours * day.network.base_mva


def powers_of(spans: tuple[Span, ...], count: int) -> "np.ndarray":
    """Return indices of the variables that are powers, not stored energy."""
    chosen = [np.arange(s.start, s.start + count) for s in spans if s.group != "energy"]
    return np.concatenate(chosen) if chosen else np.zeros(0, dtype=np.int64)
