"""Print how far colluding devices bend a sum of ratios, by ways of cutting off [risk 4.5].

Plain numbers, because on shares the same comes out (tests/risk/test_robust.py):
``python tests/risk/collusion_table.py``. The last rows are SimBench's household profiles, where
readings are divided by what is expected (mean of the 14 days before) or usual (their median).
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
FLEETS, COUNT = 30, 1000


def quantile(x: Floats, weights: Floats, level: float) -> float:
    """Return the value at which so much of the weight is reached."""
    order = np.argsort(x)
    ends = np.cumsum(weights[order])
    return float(x[order][np.searchsorted(ends, level * ends[-1])])


def trimmed(x: Floats, weights: Floats, cut: float) -> float:
    """Return the mean of the weight between two equal cuts."""
    order = np.argsort(x)
    ends = np.cumsum(weights[order])
    starts, mass = ends - weights[order], float(ends[-1])
    low, high = cut * mass, (1 - cut) * mass
    kept = np.clip(ends, low, high) - np.clip(starts, low, high)
    return float(x[order] @ kept / kept.sum())


def rejecting(x: Floats, weights: Floats, reach: float, cut: float) -> float:
    """Leave out what is too many robust deviations off the median, then trim."""
    middle = quantile(x, weights, 0.5)
    is_near = np.abs(x - middle) <= reach * 1.4826 * quantile(np.abs(x - middle), weights, 0.5)
    return trimmed(x[is_near], weights[is_near], cut)


WAYS: dict[str, Callable[[Floats, Floats], float]] = {
    "trim 0.3": lambda x, w: trimmed(x, w, 0.3),
    "trim 0.4": lambda x, w: trimmed(x, w, 0.4),
    "reject 3, trim 0.3": lambda x, w: rejecting(x, w, 3.0, 0.3),
    "reject 2, trim 0.3": lambda x, w: rejecting(x, w, 2.0, 0.3),
    "reject 2, trim 0.4": lambda x, w: rejecting(x, w, 2.0, 0.4),
    "reject 2.5, trim 0.4": lambda x, w: rejecting(x, w, 2.5, 0.4),
}


def errors(shape: str, spread: float, part: float, seed: int) -> list[float]:
    """Return the largest error of each way, over what the liars say."""
    rng = np.random.default_rng(seed)
    sizes, normal = rng.lognormal(0, 0.8, COUNT), rng.standard_normal(COUNT)
    skewed = np.exp(spread * normal - spread**2 / 2)
    ratios = (1 + spread * normal if shape == "normal" else skewed).clip(0, 4)
    bad = rng.permutation(COUNT)[: round(part * COUNT)]
    weights = np.minimum(sizes, 0.02 * sizes.sum())
    truth = float((sizes * ratios).sum())
    worst = [0.0] * len(WAYS)
    for said in (4.0, 0.0, 1.5, 1 + 2 * spread, 1 - 2 * spread, 1 + 3 * spread):
        told = ratios.copy()
        told[bad] = said
        for place, way in enumerate(WAYS.values()):
            error = abs(way(told, weights) * float(sizes.sum()) / truth - 1)
            worst[place] = max(worst[place], error)
    return worst


@dataclass(frozen=True)
class Households:
    """Readings of so many households and of the days before: SimBench's profiles, moved in time.

    Moved by up to three weeks and an hour, no two of them switch on together; sizes differ.
    """

    profiles: Floats
    """(day, interval, profile), per-unit."""

    @classmethod
    def read(cls, minutes: int) -> "Households":
        """Read the single households among the profiles, averaged over so many minutes."""
        import pandas as pd
        import simbench

        folder = Path(simbench.__file__).parent / "networks" / "1-complete_data-mixed-all-0-sw"
        names = [f"H0-{kind}_pload" for kind in "ABCGL"]
        table = pd.read_csv(folder / "LoadProfile.csv", sep=";", usecols=names)[names].to_numpy()
        count = minutes // 15
        days = table[: len(table) // 96 * 96].reshape(-1, 96 // count, count, len(names))
        return cls(days.mean(axis=2))

    def fleet(self, seed: int) -> tuple[Floats, Floats, Floats]:
        """Return readings in some interval, and mean and median of the same on 14 days before."""
        days, intervals, kinds = self.profiles.shape
        rng = np.random.default_rng(seed)
        kind, moved = rng.integers(0, kinds, COUNT), rng.integers(-21, 22, COUNT)
        later = np.rint(rng.uniform(-1, 1, COUNT) * intervals / 24).astype(int)
        size = rng.lognormal(0, 0.5, COUNT)
        day, at = int(rng.integers(60, 300)), int(rng.integers(0, intervals))
        found = np.stack(
            [
                self.profiles[(day - k + moved) % days, (at + later) % intervals, kind] * size
                for k in range(15)
            ]
        )
        return found[0], found[1:].mean(axis=0), np.median(found[1:], axis=0)


def household_errors(
    fleet: tuple[Floats, Floats, Floats], part: float, seed: int
) -> tuple[float, float, float]:
    """Return spread, and the largest errors of trimmed ratios to the mean and to the median."""
    values, mean, median = fleet
    weights = np.minimum(mean, 0.02 * mean.sum())
    ratios = values / mean
    middle = quantile(ratios, weights, 0.5)
    spread = 1.4826 * quantile(np.abs(ratios - middle), weights, 0.5)
    bad = np.random.default_rng(seed).permutation(COUNT)[: round(part * COUNT)]
    worst = [0.0, 0.0]
    for said in (4.0, 0.0, 1.5, 1 + 2 * spread, max(1 - 2 * spread, 0.0), 1 + 3 * spread):
        told = values.copy()
        told[bad] = said * mean[bad]
        for place, divisor in enumerate((mean, median)):
            found = trimmed(told / divisor, weights, 0.4) * float(mean.sum())
            worst[place] = max(worst[place], abs(found / float(values.sum()) - 1))
    return spread, worst[0], worst[1]


def print_households() -> None:
    """Print medians and maxima over fleets of households, in per cent."""
    print(f"{'SimBench households':42}{'spread':>8}{'of the mean':>24}{'of the median':>24}")
    for minutes in (15, 60, 1440):
        profiles = Households.read(minutes)
        fleets = [profiles.fleet(seed) for seed in range(FLEETS)]
        for part in (0.0, 0.1, 0.3):
            rows = [household_errors(one, part, seed) for seed, one in enumerate(fleets)]
            spread, *found = np.array(rows).T
            cells = [f"{100 * np.median(one):14.1f}, {100 * one.max():8.1f}" for one in found]
            what = f"readings of {minutes:4d} minutes, {part:4.0%} lie"
            print(f"{what:42}{np.median(spread):8.2f}" + "".join(cells))


def main() -> None:
    """Print medians and maxima over fleets, in per cent."""
    print(f"{'':34}" + "".join(f"{name:>22}" for name in WAYS))
    for spread in (0.10, 0.15, 0.20, 0.25):
        for part in (0.0, 0.1, 0.3):
            for shape in ("normal", "lognormal"):
                found = np.array([errors(shape, spread, part, seed) for seed in range(FLEETS)])
                cells = [f"{100 * np.median(one):12.1f}, {100 * one.max():8.1f}" for one in found.T]
                print(f"{shape:10} spread {spread:.2f}, {part:4.0%} lie " + "".join(cells))
    print_households()


if __name__ == "__main__":
    main()
