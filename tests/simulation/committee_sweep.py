"""The long simulation of committees: ``python tests/simulation/committee_sweep.py --seeds 1000``.

Each seed draws a committee of 3 to 7, weather, one member of the cast or nobody, and lets two tasks
run: see ``trial`` in test_committee.py. The first seed that breaks a property ends it with the
command that replays it, which is this script with ``--first-seed`` and ``--seeds 1``.
"""

import argparse
import sys
import time
from collections import Counter

from test_committee import trial


def main() -> int:
    """Run the sweep; 1 at the first seed that breaks a property."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=1000)
    parser.add_argument("--first-seed", type=int, default=0)
    chosen = parser.parse_args()
    began, cast = time.perf_counter(), Counter[str]()
    for seed in range(chosen.first_seed, chosen.first_seed + chosen.seeds):
        try:
            cast[trial(seed)] += 1
        except Exception as error:  # noqa: BLE001 - whatever breaks, the seed is what matters
            print(f"{seed=}: {type(error).__name__}: {error}")
            print(
                f"replay: python tests/simulation/committee_sweep.py --first-seed {seed} --seeds 1"
            )
            return 1
    for name, count in sorted(cast.items()):
        print(f"{name:15} {count}")
    seconds = time.perf_counter() - began
    print(f"{chosen.seeds} committees, nothing wrong accepted, {seconds:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
