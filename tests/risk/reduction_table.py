"""What trade reduction costs in small markets: ``python tests/risk/reduction_table.py``."""

from typing import Any

import numpy as np

from veilgrid.mpc.bulk import plain_batch
from veilgrid.mpc.plain import Plain
from veilgrid.risk.auction import REDUCTION, allocate, best_welfare, clear, encode, layout_of


def kept(count: int, seed: int, rule: str = REDUCTION) -> float | None:
    """Return the part of the optimum that is traded with so many a side; None if there is none."""
    rng = np.random.default_rng(seed)
    prices = np.concatenate([rng.normal(2400, 400, count), rng.normal(2000, 400, count)])
    ticks = np.clip(prices.round(), 0, 2**16 - 1).astype(np.int64)
    sizes, is_buy = rng.integers(50, 400, 2 * count), np.arange(2 * count) < count
    best = best_welfare(ticks, sizes, is_buy)
    if not best:
        return None
    layout, mpc = layout_of(400, 4), Plain()
    batch = plain_batch(mpc, layout, encode(layout, ticks, sizes))
    found: Any = mpc.run(clear(mpc, batch, is_buy, np.ones(2 * count, np.int64), rule))
    traded = allocate(found, ticks, sizes, is_buy)
    return float((traded * ticks * np.where(is_buy, 1, -1)).sum() / best)


def row_of(count: int, seeds: int) -> tuple[float, float]:
    """Return mean and worst part of the optimum over so many markets."""
    found = [one for one in (kept(count, seed) for seed in range(seeds)) if one is not None]
    return float(np.mean(found)), min(found)


if __name__ == "__main__":
    print("| bidders a side | welfare kept, mean | worst of 200 |\n|---|---|---|")
    for count in (1, 2, 3, 5, 10, 15, 20, 29):
        mean, worst = row_of(count, 200)
        print(f"| {count} | {100 * mean:.1f} % | {100 * worst:.1f} % |")
