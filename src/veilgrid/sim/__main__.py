"""Replay one seed of a simulation: ``python -m veilgrid.sim package.module:function --seed 7``."""

import argparse
import importlib
import json
import sys

from veilgrid.sim.checker import Violation


def main() -> int:
    """Run the simulation once, print its digest as JSON; 1 if a property was violated."""
    parser = argparse.ArgumentParser(prog="python -m veilgrid.sim", description=main.__doc__)
    parser.add_argument("simulation", help="package.module:function of a seed")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--import-path", action="append", default=[], help="look for modules here")
    arguments = parser.parse_args()
    sys.path[:0] = arguments.import_path
    module, _, name = arguments.simulation.partition(":")
    simulation = getattr(importlib.import_module(module), name)
    try:
        world = simulation(arguments.seed)
        world.finish()
    except AssertionError as error:
        kind = "violated" if isinstance(error, Violation) else "failed"
        print(json.dumps({"seed": arguments.seed, "outcome": kind, "claim": str(error)}))
        return 1
    print(
        json.dumps(
            {
                "seed": arguments.seed,
                "outcome": "held",
                "digest": world.digest,
                "steps": world.step_count,
                "crashes": world.crash_count,
                "now_ns": world.now_ns,
            }
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
