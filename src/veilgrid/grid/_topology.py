"""Whether branches form one tree that hangs from the substation, and if not, where they fail."""

from collections import deque

from veilgrid.grid._table import Notes, several
from veilgrid.grid.network import Branch

FILE = "branches.csv"


def check_radial(
    buses: dict[str, int],
    slack: str,
    branches: list[tuple[int, Branch]],
    is_complete: bool,
    notes: Notes,
) -> None:
    """Note doubled branches, loops, branches that are listed backwards, and unreachable buses.

    ``buses`` come with their rows in buses.csv and ``branches`` with theirs in branches.csv; both
    ends of a branch are among ``buses``. Unless all rows could be read, unreachable buses are not
    noted: the missing row explains them.
    """
    neighbours: dict[str, dict[str, int]] = {bus: {} for bus in buses}
    backwards: dict[tuple[str, str], int] = {}
    group = {bus: bus for bus in buses}
    for line, branch in branches:
        start, end = str(branch.parent), str(branch.child)
        here = f"{FILE} row {line}"
        if start == end:
            notes.fault(f"{here}, column to_bus", f"both ends are bus {start}")
        elif end in neighbours[start]:
            problem = f"buses {start} and {end} are already joined in row {neighbours[start][end]}"
            notes.fault(here, problem, "merge parallel branches into one")
        elif _head(group, start) == _head(group, end):
            loop = [*path(neighbours, start, end), start]
            notes.fault(
                here,
                f"closes the loop {' - '.join(loop)}: the network is not radial",
                "leave out the branch whose switch is open",
            )
        else:
            neighbours[start][end] = neighbours[end][start] = line
            backwards[end, start] = line
            group[_head(group, start)] = _head(group, end)
    reached = {slack}
    queue = deque([slack])
    while queue:
        bus = queue.popleft()
        for other in neighbours[bus]:
            if other not in reached:
                reached.add(other)
                queue.append(other)
                if (bus, other) in backwards:
                    notes.fault(
                        f"{FILE} row {backwards[bus, other]}",
                        f"bus {bus} is nearer the substation than bus {other}",
                        "swap from_bus and to_bus",
                    )
    if is_complete:
        _check_islands(buses, neighbours, reached, slack, notes)


def _head(group: dict[str, str], bus: str) -> str:
    """Return the bus that stands for all buses joined with ``bus`` so far."""
    while group[bus] != bus:
        group[bus] = group[group[bus]]
        bus = group[bus]
    return bus


def _check_islands(
    buses: dict[str, int],
    neighbours: dict[str, dict[str, int]],
    reached: set[str],
    slack: str,
    notes: Notes,
) -> None:
    """Note each group of buses that no path joins to the substation."""
    left = dict.fromkeys(bus for bus in buses if bus not in reached)
    while left:
        island = [next(iter(left))]
        del left[island[0]]
        for bus in island:
            for other in neighbours[bus]:
                if other in left:
                    del left[other]
                    island.append(other)
        notes.fault(
            f"buses.csv row {buses[island[0]]}, column bus",
            f"no path leads from substation {slack} to bus {several(island)}",
            f"add the missing branch to {FILE}",
        )


def path(neighbours: dict[str, dict[str, int]], start: str, end: str) -> list[str]:
    """Return the buses from start to end, both included; empty if no path exists."""
    before = {start: start}
    queue = deque([start])
    while queue and end not in before:
        bus = queue.popleft()
        for other in neighbours[bus]:
            if other not in before:
                before[other] = bus
                queue.append(other)
    if end not in before:
        return []
    found = [end]
    while found[-1] != start:
        found.append(before[found[-1]])
    return found[::-1]
