"""Example machines live beside the unit tests of the drivers."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "node"))
