"""Print how far colluding devices bend a sum of ratios, by ways of cutting off [risk 4.5].

Plain numbers, because on shares the same comes out (tests/risk/test_robust.py):
``python tests/risk/collusion_table.py``.
"""

from collections.abc import Callable

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


def main() -> None:
    """Print medians and maxima over fleets, in per cent."""
    print(f"{'':34}" + "".join(f"{name:>22}" for name in WAYS))
    for spread in (0.10, 0.15, 0.20, 0.25):
        for part in (0.0, 0.1, 0.3):
            for shape in ("normal", "lognormal"):
                found = np.array([errors(shape, spread, part, seed) for seed in range(FLEETS)])
                cells = [f"{100 * np.median(one):12.1f}, {100 * one.max():8.1f}" for one in found.T]
                print(f"{shape:10} spread {spread:.2f}, {part:4.0%} lie " + "".join(cells))


if __name__ == "__main__":
    main()
