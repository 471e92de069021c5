"""Trade every five minutes: bidders come and go, and who spoofs weighs a tenth in the next round.

Thirty-two households on each side bid three times. In the first round one of them orders a hundred
times what others do, to drive the price up. It is named without anybody seeing an order, is bound
to twice the middle household at once, and counts a tenth in the second round. A file remembers.
"""

import csv
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path

HOUSES = 32


def bids_of(round_number: int) -> list[list[object]]:
    """Return the orders of one round: prices in ct/kWh, quantities in kWh."""
    draw = random.Random(round_number)  # noqa: S311 - made-up households
    rows = []
    for house in range(HOUSES):
        rows.append([f"home {house}", "buy", round(draw.gauss(24, 4), 1), draw.randint(5, 40) / 10])
        rows.append(
            [f"roof {house}", "sell", round(draw.gauss(20, 4), 1), draw.randint(5, 40) / 10]
        )
    rows.append(["mallory", "buy", 40, 400 if round_number == 1 else 2])
    return rows[2:] if round_number == 2 else rows  # One pair stays at home in the second round.


def main() -> None:
    """Clear three rounds and show what became of the spoof."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = []
        for number in (1, 2, 3):
            files.append(str(folder / f"bids_{number}.csv"))
            with Path(files[-1]).open("w", newline="") as file:
                rows = csv.writer(file)
                rows.writerow(["participant", "side", "price", "quantity"])
                rows.writerows(bids_of(number))
        command = [sys.executable, "-m", "veilgrid", "market", *files, "--json", "--seed", "1"]
        command += ["--history", str(folder / "history.sqlite")]
        done = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603
    found = json.loads(done.stdout)
    for one in found["rounds"]:
        flags = [f"{flag['participant']}: {flag['kind']}" for flag in one["flags"]]
        weights = [f"{who['participant']} weighs {who['weight']:.2f}" for who in one["weights"]]
        print(
            f"round {one['number']}: {one['volume']:6.1f} kWh at {one['price']}", *flags, *weights
        )
    first, second, _ = found["rounds"]
    assert ("mallory", "spoof") in {(one["participant"], one["kind"]) for one in first["flags"]}
    assert {who["participant"] for who in second["weights"]} == {"mallory"}
    assert second["left"] == ["home 0", "roof 0"]


if __name__ == "__main__":
    main()
