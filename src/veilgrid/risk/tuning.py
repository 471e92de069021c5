"""Choose the weighting on labelled events of the past, judged on unseen ones [sensitivity 4].

Rounds are split by time: weightings compete on the earlier ones, the best is compared with the
default on the later ones, and is recommended only if it is better there as well.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from veilgrid.errors import Finding, InputError, invariant
from veilgrid.risk.sensitivity import Floats, Replay, Rounds, Weighting

Places = npt.NDArray[np.int64]

HELD_OUT: Final = 0.3


@dataclass(frozen=True, slots=True, eq=False)
class Events:
    """What is known today about rounds of the past.

    Attributes
    ----------
    truths : by round
        The true figure, where it was measured otherwise.
    bad : by round
        Sources that were faulty or lied.
    """

    truths: Mapping[int, float]
    bad: Mapping[int, frozenset[str]]


def targets(rounds: Rounds, events: Events) -> tuple[Places, Floats]:
    """Return the labelled rounds and what their figures should have been.

    Where only bad sources are known, that is the plain mean of all others that were valid.
    """
    places, wanted = [], []
    sizes = rounds.baseline
    for k, label in enumerate(rounds.labels):
        if label in events.truths:
            places.append(k)
            wanted.append(events.truths[label])
        elif label in events.bad:
            good = np.array([name not in events.bad[label] for name in rounds.names])
            kept = good & rounds.is_valid[k]
            if not kept.any():
                continue
            places.append(k)
            values = rounds.values[k, kept]
            scale = 1.0 if sizes is None else float(sizes.mean() / sizes[kept].mean())
            wanted.append(float(values.mean()) * scale)
    return np.array(places, np.int64), np.array(wanted, np.float64)


def errors_of(played: Replay, places: Places, wanted: Floats) -> Floats:
    """Return errors relative to the mean size of the true figures, (labelled round,)."""
    scale = max(float(np.abs(wanted).mean()), 1e-300)
    found: Floats = np.abs(played.figures[places] - wanted) / scale
    return found


@dataclass(frozen=True, slots=True)
class Tuned:
    """The outcome of tuning.

    Attributes
    ----------
    weighting
        The best on the training rounds.
    is_recommended
        Whether it is also better than the default on the held-out rounds.
    training_rounds, held_out_rounds
        Labelled rounds of each kind.
    training_error, held_out_error
        Mean relative error of the best.
    default_training_error, default_held_out_error
        The same of the default.
    """

    weighting: Weighting
    is_recommended: bool
    training_rounds: int
    held_out_rounds: int
    training_error: float
    held_out_error: float
    default_training_error: float
    default_held_out_error: float


def tune(
    rounds: Rounds,
    events: Events,
    tried: Sequence[tuple[Weighting, Replay]],
    default: tuple[Weighting, Replay],
    held_out: float = HELD_OUT,
) -> Tuned:
    """Choose among replayed weightings.

    Parameters
    ----------
    rounds, events
        The past and what is known about it.
    tried
        Weightings with their replays; weights of a round never depend on later rounds, so a
        replay of all rounds may be judged on the earlier ones alone.
    default
        What is used today.
    held_out : 0.1..0.9
        Share of the labelled rounds, the latest, that takes no part in the choice.

    Raises
    ------
    InputError
        Too few labelled rounds to hold any out.
    """
    if not 0.1 <= held_out <= 0.9:
        raise InputError([Finding("--held-out", f"found {held_out:g}, expected 0.1..0.9")])
    invariant(len(tried) > 0, "something was tried")
    places, wanted = targets(rounds, events)
    later = max(round(held_out * places.size), 1)
    earlier = places.size - later
    if earlier < 3 or later < 2:
        problem = f"{places.size} labelled rounds can be used, at least 5 are needed"
        raise InputError([Finding("EVENTS", problem, "label more rounds, or leave it out")])

    def judged(played: Replay) -> tuple[float, float]:
        errors = errors_of(played, places, wanted)
        return float(errors[:earlier].mean()), float(errors[earlier:].mean())

    before = judged(default[1])
    best, best_errors = default[0], before
    for weighting, played in tried:
        errors = judged(played)
        if errors[0] < best_errors[0]:
            best, best_errors = weighting, errors
    is_better = best != default[0] and best_errors[1] < before[1]
    return Tuned(best, is_better, earlier, later, *best_errors, *before)
