"""The feeder on paper: no two buses in one place, no branches crossing."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from veilgrid.grid.network import Branch, Bus, BusId, Network
from veilgrid.report.feeder import electrical_distance, place, reading_order


def network_of(parents: list[int]) -> Network:
    """Bus k + 1 hangs on ``parents[k]``; buses are listed backwards to tell order from depth."""
    names = [BusId(f"n{index}") for index in range(len(parents) + 1)]
    return Network(
        buses=tuple(Bus(name=name) for name in reversed(names)),
        branches=tuple(
            Branch(
                parent=names[parent], child=names[child + 1], resistance_pu=0.3, reactance_pu=0.4
            )
            for child, parent in enumerate(parents)
        ),
        base_mva=1.0,
        base_kv=10.0,
        slack_bus=names[0],
    )


@st.composite
def trees(draw) -> list[int]:
    count = draw(st.integers(0, 60))
    reach = draw(st.sampled_from([1, 3, 100]))
    return [draw(st.integers(max(0, k - reach), k)) for k in range(count)]


@given(trees())
def test_no_two_buses_share_a_place_and_no_branches_cross(parents) -> None:
    tree = network_of(parents).tree
    depth, row = place(tree)
    assert len({*zip(depth.tolist(), row.tolist(), strict=True)}) == len(tree)
    assert (depth[tree.root], row[tree.root]) == (0, 0)
    gaps: dict[int, list[tuple[int, int]]] = {}
    for bus in tree.order[1:]:
        parent = tree.parent[bus]
        assert depth[bus] == depth[parent] + 1
        gaps.setdefault(int(depth[parent]), []).append((int(row[parent]), int(row[bus])))
    for branches in gaps.values():
        ends = [child for _, child in sorted(branches)]
        assert ends == sorted(ends), f"branches cross: {parents}"


@given(trees())
def test_reading_order_names_every_bus_once_after_its_parent(parents) -> None:
    tree = network_of(parents).tree
    order = reading_order(tree).tolist()
    assert sorted(order) == list(range(len(tree)))
    position = {bus: index for index, bus in enumerate(order)}
    assert all(position[tree.parent[bus]] < position[bus] for bus in tree.order[1:].tolist())


def test_a_long_way_is_a_straight_row() -> None:
    depth, row = place(network_of(list(range(2000))).tree)
    assert depth.max() == 2000
    assert np.abs(row).max() == 0


def test_laterals_share_rows_where_they_do_not_meet() -> None:
    """A comb of short laterals must not become a staircase as high as it is long."""
    parents: list[int] = []
    trunk = 0
    for _ in range(40):
        parents += [trunk, trunk]
        trunk = len(parents)
    _, row = place(network_of(parents).tree)
    assert row.max() - row.min() <= 2


def test_distance_is_the_impedance_on_the_way() -> None:
    network = network_of([0, 1, 1])
    distance = dict(
        zip([bus.name for bus in network.buses], electrical_distance(network.tree), strict=True)
    )
    expected = {"n0": 0.0, "n1": 0.5, "n2": 1.0, "n3": 1.0}
    assert {name: round(float(value), 12) for name, value in distance.items()} == expected
