"""The budget ledger never counts less than was computed, whatever is cut off when."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from veilgrid.errors import InputError, RunAborted, SetupError
from veilgrid.node.budget import BudgetFile, open_budget
from veilgrid.risk.accountant import Charge

CHARGE = Charge("gaussian", 500.0, 10)
DAY = "2026-06-15"
LIMITS = (1.0, 1e-6)


def answering(text: str) -> Callable[[], bytes]:
    return lambda: text.encode()


def never() -> bytes:
    pytest.fail("nothing may be computed")


def ask(path: Path, question: str, answer: Callable[[], bytes], day: str = DAY) -> bytes:
    with open_budget(path, *LIMITS) as ledger:
        return ledger.release(day, question.encode(), [CHARGE], answer)[0]


def spent(path: Path, day: str = DAY) -> int:
    with open_budget(path, *LIMITS) as ledger:
        return ledger.budget.count(day)


def test_who_asks_again_gets_the_same_answer_for_nothing(tmp_path: Path) -> None:
    """A second draw of noise would let the asker average it away."""
    path = tmp_path / "budget"
    assert ask(path, "mean of june", answering("7.25")) == b"7.25"
    assert ask(path, "mean of june", never) == b"7.25"
    assert ask(path, "mean of june", never, "another day") == b"7.25"
    assert spent(path) == 1
    assert b"mean of june" not in path.read_bytes()


def test_a_spent_budget_refuses_before_anything_is_computed(tmp_path: Path) -> None:
    path = tmp_path / "budget"
    large = Charge("gaussian", 42.3, 10)
    with open_budget(path, *LIMITS) as ledger:
        ledger.release(DAY, b"first", [large], answering("1"))
        with pytest.raises(InputError, match="does not allow this release: 1 releases have"):
            ledger.release(DAY, b"second", [large], never)
        ledger.release("2026-06-16", b"second", [large], answering("2"))
    assert spent(path) == 1


def test_many_small_releases_compose_better_than_their_sum(tmp_path: Path) -> None:
    """96 releases whose epsilons add up to 6 fit a budget of 1, and one more of a size does not."""
    small = Charge("gaussian", 414.5, 10)
    with open_budget(tmp_path / "budget", *LIMITS) as ledger:
        for slot in range(96):
            ledger.release(DAY, b"%d" % slot, [small], answering("x"))
        assert ledger.budget.loss(DAY).epsilon(1e-6) <= 1.0
        large = Charge("gaussian", 140.0, 10)
        with pytest.raises(InputError, match="96 releases have spent"):
            ledger.release(DAY, b"too much", [large], never)


def test_a_failed_computation_stays_charged(tmp_path: Path) -> None:
    """Parties may have opened the figure before they failed."""
    path = tmp_path / "budget"

    def fails() -> bytes:
        raise RunAborted("a party left")

    with pytest.raises(RunAborted):
        ask(path, "q", fails)
    assert spent(path) == 1
    assert ask(path, "q", answering("1")) == b"1"
    assert spent(path) == 2


@pytest.fixture
def memory_path(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is one: ten thousand syncs of a disk take minutes."""
    memory = Path("/dev/shm")  # noqa: S108
    if not (memory.is_dir() and os.access(memory, os.W_OK)):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


@pytest.mark.slow
def test_ten_thousand_crashes_never_under_count(memory_path: Path) -> None:
    """Cut the file at every byte: whatever had been computed by then is counted.

    The file is in every state that an append-only file can be left in by a crash, the torn
    record possibly filled with zeros, as file systems do after a loss of power.
    """
    path, copy = memory_path / "budget", memory_path / "copy" / "budget"
    copy.parent.mkdir()
    computed: list[int] = []
    told: list[tuple[int, bytes]] = []

    def compute(k: int) -> Callable[[], bytes]:
        def answer() -> bytes:
            computed.append(path.stat().st_size)
            return b"answer %d" % k

        return answer

    count = 0
    with open_budget(path, *LIMITS) as ledger:
        while path.stat().st_size < 10_000 + 400:
            answer, _ = ledger.release(DAY, b"%d" % count, [CHARGE], compute(count))
            told.append((path.stat().st_size, answer))
            count += 1
    octets = path.read_bytes()
    start = computed[0]
    points = list(range(start, len(octets)))
    assert len(points) >= 9_500
    for place, length in enumerate([*range(start), *points]):
        torn = bytes(37) if place % 3 == 0 and length > 100 else b""
        copy.write_bytes(octets[:length] + torn)
        with open_budget(copy, *LIMITS) as ledger:
            _check_after_crash(ledger, length, computed, told)
    assert len(octets) >= 10_000


def _check_after_crash(
    ledger: BudgetFile, length: int, computed: list[int], told: list[tuple[int, bytes]]
) -> None:
    begun = sum(size <= length for size in computed)
    counted = ledger.budget.count(DAY)
    assert counted >= begun, f"{length=}"
    assert counted <= begun + 1
    known = [k for k, (size, _) in enumerate(told) if size <= length]
    if known:
        answer, is_repeated = ledger.release(DAY, b"%d" % known[-1], [CHARGE], never)
        assert is_repeated
        assert answer == told[known[-1]][1]


_KILLED = """
import sys
from pathlib import Path
from veilgrid.node.budget import open_budget
from veilgrid.risk.accountant import Charge
charge = Charge("gaussian", 5000.0, 10)
for k in range(100_000):
    with open_budget(Path(sys.argv[1]), 1.0, 1e-6) as ledger:
        def compute():
            print("computing", k, flush=True)
            return b"%d" % k
        ledger.release("day", b"%s %d" % (sys.argv[2].encode(), k), [charge], compute)
"""


def test_a_process_killed_at_any_time_leaves_a_ledger_that_counts(tmp_path: Path) -> None:
    path, computed = tmp_path / "budget", 0
    for turn in range(2):
        child = subprocess.Popen(
            [sys.executable, "-c", _KILLED, str(path), str(turn)], stdout=subprocess.PIPE, text=True
        )
        assert child.stdout is not None
        lines = [child.stdout.readline() for _ in range(3 + 6 * turn)]
        child.send_signal(signal.SIGKILL)
        computed += len(lines) + len(child.stdout.readlines())
        child.wait()
        child.stdout.close()
        assert computed <= spent(path, "day") <= computed + turn + 1


_TWO = """
import json, sys
from pathlib import Path
from veilgrid.errors import InputError
from veilgrid.node.budget import open_budget
from veilgrid.risk.accountant import Charge
charge, told, own = Charge("gaussian", 140.0, 10), {}, 0
for k in range(14):
    with open_budget(Path(sys.argv[1]), 1.0, 1e-6) as ledger:
        def compute():
            global own
            own += 1
            return b"%d by %s" % (k, sys.argv[2].encode())
        try:
            told[k] = ledger.release("day", b"%d" % k, [charge], compute)[0].decode()
        except InputError:
            told[k] = "refused"
print(json.dumps({"told": told, "own": own}))
"""


def test_two_processes_share_one_budget(tmp_path: Path) -> None:
    """Same questions at the same time: one answer each, and together no more than allowed."""
    path = tmp_path / "budget"
    children = [
        subprocess.Popen(
            [sys.executable, "-c", _TWO, str(path), name], stdout=subprocess.PIPE, text=True
        )
        for name in "ab"
    ]
    found = [json.loads(child.communicate(timeout=120)[0]) for child in children]
    assert found[0]["told"] == found[1]["told"]
    assert found[0]["own"] + found[1]["own"] == spent(path, "day")
    assert "refused" in found[0]["told"].values()
    with open_budget(path, *LIMITS) as ledger:
        assert ledger.budget.loss("day").epsilon(1e-6) <= 1.0


def test_a_ledger_in_use_is_waited_for_and_then_named(tmp_path: Path) -> None:
    path = tmp_path / "budget"
    with open_budget(path, *LIMITS):
        begun = time.monotonic()
        with pytest.raises(SetupError, match="in use"), open_budget(path, *LIMITS, wait_s=0.1):
            pass
        assert time.monotonic() - begun >= 0.1


def test_terms_are_kept_and_other_files_refused(tmp_path: Path) -> None:
    path = tmp_path / "budget"
    assert ask(path, "q", answering("1")) == b"1"
    with pytest.raises(InputError, match="allows epsilon 1 a day"), open_budget(path, 2.0, 1e-6):
        pass
    with open_budget(path, None, 1e-3) as ledger:
        assert (ledger.budget.terms.epsilon, ledger.budget.terms.delta) == LIMITS
    shutil.copy(__file__, tmp_path / "other")
    with pytest.raises(SetupError), open_budget(tmp_path / "other", *LIMITS):
        pass
