"""Measure what a demand-response call really brought, while a tenth of the sites lie.

The baseline of each site on the bundled SimBench feeder is its load a day before, at the same
time, adjusted by how today differed two hours before the call. Sites were asked to shed a
quarter of their load; liars say that they shed everything.
"""

import csv
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import veilgrid

BEFORE, EVENT = "simbench-rural-2016-01-18", "simbench-rural-2016-01-19"
MORNING, EARLIER = 40, 32  # The quarters of an hour from 10:00 and from 8:00.
SHED = 0.25


def main() -> None:
    """Sum the load that is left by ratios to baselines, and compare with adding up."""
    planned, usual = loads_kw(EVENT, MORNING), loads_kw(BEFORE, MORNING)
    today, yesterday = loads_kw(EVENT, EARLIER), loads_kw(BEFORE, EARLIER)
    baselines = {site: usual[site] * today[site] / yesterday[site] for site in planned}
    left = {site: (1 - SHED) * load for site, load in planned.items()}
    said = {site: 0.0 if k % 10 == 5 else load for k, (site, load) in enumerate(left.items())}
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "event.csv"
        with path.open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["source", "value", "tier", "lower", "upper", "baseline"])
            for site, load in said.items():
                size = baselines[site]
                rows.writerow([site, f"{load:.4f}", "household", 0, f"{3 * size:.4f}", size])
        command = [sys.executable, "-m", "veilgrid", "aggregate", str(path), "--json"]
        command += ["--function", "sum"]
        done = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603
    found, truth = json.loads(done.stdout), sum(left.values())
    robust, naive = found["value"] / truth - 1, sum(said.values()) / truth - 1
    print(f"really left  {truth:8.1f} kW of {sum(planned.values()):.1f} kW planned")
    print(f"robust sum   {found['value']:8.1f} kW, {robust:+.1%}")
    print(f"adding up    {sum(said.values()):8.1f} kW, {naive:+.1%}")
    assert abs(robust) <= 0.03 < abs(naive)


def loads_kw(day: str, interval: int) -> dict[str, float]:
    """Return the load of each site that has one, in one quarter of an hour."""
    scenario = veilgrid.open_scenario(day)
    loads = 1000 * scenario.load_p_mw[:, interval]
    names = [str(bus.name) for bus in scenario.network.buses]
    return {name: float(load) for name, load in zip(names, loads, strict=True) if load > 0.01}


if __name__ == "__main__":
    main()
