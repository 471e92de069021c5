"""Ask whether a transformer is overloaded without any site showing its load.

Loads of one evening on the bundled SimBench feeder; one meter is broken and one says nothing.
"""

import csv
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import veilgrid

DAY = "simbench-rural-2016-01-18"
EVENING = 72  # The quarter of an hour from 18:00.


def main() -> None:
    """Average the sites' loads, and compare the sum with two transformers."""
    loads_kw = 1000 * veilgrid.open_scenario(DAY).load_p_mw[:, EVENING]
    readings = [(f"site {k}", float(load)) for k, load in enumerate(loads_kw) if load > 0.01]
    honest_kw = sum(load for _, load in readings[2:])
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "readings.csv"
        with path.open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["source", "value", "tier", "lower", "upper"])
            for number, (site, load) in enumerate(readings):
                shown = {0: "1000000", 1: "nan"}.get(number, f"{load:.4f}")
                rows.writerow([site, shown, "household", 0, 250])
        mean = aggregate(path, "mean")
        print(
            f"{mean['accepted']} sites, mean {mean['value']:.3f} kW, "
            f"at most {mean['risk_adjusted']:.3f} kW with 95 % confidence"
        )
        for one in mean["rejected"]:
            print(f"left out: {one['source']}: {one['reason']}")
        assert mean["value"] < mean["risk_adjusted"]
        assert len(mean["rejected"]) == 2
        for share in (0.9, 1.5):
            found = aggregate(path, "sum", "--rating", f"{share * honest_kw:.3f}")
            state = "overloaded" if found["overloaded"] else "within its rating"
            print(f"transformer of {found['rating']:.0f} kW: {found['loading']:.0%}, {state}")
            assert abs(found["value"] - honest_kw) < 0.01
            assert found["overloaded"] is (share < 1)


def aggregate(path: Path, function: str, *more: str) -> dict[str, float | bool | list[dict]]:
    """Run one round; nothing but the figure is opened."""
    command = [sys.executable, "-m", "veilgrid", "aggregate", str(path), "--json"]
    command += ["--function", function, *more]
    done = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603
    return json.loads(done.stdout)


if __name__ == "__main__":
    main()
