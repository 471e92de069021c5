"""The ledger of these tests is shared by them, and the ledger's own worlds are read, too."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[2] / "ledger"))
