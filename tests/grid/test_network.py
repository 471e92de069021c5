"""Radial networks: what is refused, and the index arrays of what is accepted."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given

from strategies import networks
from veilgrid.errors import InvariantError
from veilgrid.grid.network import Branch, Bus, BusId, Network


def _branch(parent: str, child: str) -> Branch:
    return Branch(parent=BusId(parent), child=BusId(child), resistance_pu=0.01, reactance_pu=0.01)


def _network(*pairs: tuple[str, str]) -> Network:
    names = dict.fromkeys(["a", *(name for pair in pairs for name in pair)])
    return Network(
        buses=tuple(Bus(name=BusId(name)) for name in names),
        branches=tuple(_branch(*pair) for pair in pairs),
        base_mva=1.0,
        base_kv=10.0,
        slack_bus=BusId("a"),
    )


@pytest.mark.parametrize(
    ("pairs", "problem"),
    [
        ([("a", "b"), ("b", "c"), ("a", "c")], "already fed"),
        ([("a", "b"), ("c", "d")], "cannot be reached"),
        ([("b", "a")], "ends at the substation"),
        ([("a", "b"), ("c", "d"), ("d", "c")], "cannot be reached"),
        ([("a", "b"), ("b", "b")], "both ends"),
    ],
)
def test_each_broken_rule_of_a_radial_network_is_found(pairs, problem) -> None:
    network = _network(*pairs)
    assert any(problem in finding.problem for finding in network.findings())
    with pytest.raises(InvariantError):
        _ = network.tree


def test_a_substation_that_is_no_bus_is_found() -> None:
    network = dataclasses.replace(_network(("a", "b")), slack_bus=BusId("z"))
    assert [finding.where for finding in network.findings()] == ["slack_bus"]


@given(network=networks())
def test_every_parent_comes_before_its_children(network: Network) -> None:
    tree = network.tree
    assert not list(network.findings())
    position = np.empty(len(tree), dtype=int)
    position[tree.order] = np.arange(len(tree))
    for bus in range(len(tree)):
        if bus != tree.root:
            assert position[tree.parent[bus]] < position[bus]
            assert tree.depth[bus] == tree.depth[tree.parent[bus]] + 1


@given(network=networks())
def test_a_branch_feeds_exactly_the_buses_whose_path_uses_it(network: Network) -> None:
    tree = network.tree
    for bus in range(len(tree)):
        path, at = set(), bus
        while at >= 0:
            path.add(at)
            at = int(tree.parent[at])
        assert set(tree.subtree[:, [bus]].nonzero()[0]) == path
        assert set(tree.path[[bus]].nonzero()[1]) == path


@given(network=networks(has_limits=True))
def test_the_tree_holds_the_branches_per_unit(network: Network) -> None:
    tree, at = network.tree, {bus.name: index for index, bus in enumerate(network.buses)}
    for branch in network.branches:
        child = at[branch.child]
        assert tree.parent[child] == at[branch.parent]
        assert tree.rating_pu[child] * network.base_mva == pytest.approx(branch.rating_mva)
        assert tree.resistance_pu[child] == branch.resistance_pu
        assert tree.reactance_pu[child] == branch.reactance_pu
        assert tree.charging_pu[child] == branch.charging_pu
