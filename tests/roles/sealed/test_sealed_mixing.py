"""Acceleration split between sites and committee takes the same steps as in one place."""

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from veilgrid.admm.accelerate import GuardedAnderson
from veilgrid.grid.lindistflow import Limits
from veilgrid.roles.sealed.day import PublicDay
from veilgrid.roles.sealed.mixing import BACK, MIX, PLAIN, MixingMemory, MixingRule, Mixture

from .sealed_days import small


def drifting(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """An affine map that mostly contracts, with parts that only drift."""
    root = rng.normal(size=(size, size))
    turned, _ = np.linalg.qr(root)
    pace = rng.uniform(-0.6, 0.97, size)
    pace[rng.random(size) < 0.2] = 1.0
    return turned @ np.diag(pace) @ turned.T, rng.normal(size=size)


def asked(rule: MixingRule, past: MixingMemory, point: np.ndarray, step: np.ndarray) -> Mixture:
    """Ask as the committee does: the length after a mixing, products where one is due."""
    if rule.is_judged:
        square = past.products(point, step, is_due=False)
        assert square.shape == (len(point), 1)
        rule.judge(float(square.sum()))
    if not rule.is_due:
        return rule.step_plainly()
    products = past.products(point, step, is_due=True)
    assert products.shape == (len(point), rule.product_count)
    return rule.decide(products.sum(axis=0).tolist())


@given(
    seed=st.integers(0, 2**32 - 1),
    memory=st.sampled_from([1, 2, 5, 20]),
    interval=st.sampled_from([1, 2, 3]),
    site_count=st.integers(1, 6),
)
@settings(max_examples=60)
def test_sites_with_their_own_past_move_as_one(
    seed: int, memory: int, interval: int, site_count: int
) -> None:
    rng = np.random.default_rng(seed)
    width = 4
    matrix, offset = drifting(rng, site_count * width)
    whole, rule, past = (
        GuardedAnderson(memory, interval),
        MixingRule(memory, interval),
        MixingMemory(memory),
    )
    point = rng.normal(size=site_count * width)
    kinds = set()
    for count in range(25):
        step = matrix @ point + offset - point
        if count and rng.random() < 0.15:
            step = step * 10.0  # As if a kink were crossed: the guard takes steps back.
        own_point, own_step = point.reshape(site_count, -1), step.reshape(site_count, -1)
        expected = whole.mix(point, step)
        mixture = asked(rule, past, own_point, own_step)
        kinds.add(mixture.kind)
        mine = past.next_point(own_point, own_step, mixture).ravel()
        scale = max(1.0, float(np.abs(expected).max()))
        np.testing.assert_allclose(mine, expected, rtol=0.0, atol=1e-4 * scale)
        point = expected
        if not np.isfinite(point).all() or np.abs(point).max() > 1e6:
            break
    assert kinds <= {BACK, PLAIN, MIX}
    if memory == 1:
        assert kinds == {PLAIN}


@pytest.mark.parametrize("memory", [2, 20])
def test_a_step_that_made_the_residual_grow_is_taken_back(memory: int) -> None:
    rule, past = MixingRule(memory, 1), MixingMemory(memory)
    point, step = np.zeros((1, 2)), np.ones((1, 2))
    first = past.next_point(point, step, asked(rule, past, point, step))
    far = 100.0 * step
    mixture = asked(rule, past, first, far)
    assert mixture.kind == BACK
    np.testing.assert_allclose(past.next_point(first, far, mixture), point + step)


def test_what_judges_a_mixing_is_the_step_after_it() -> None:
    """The step before it says nothing of it: bad mixings stood, days took six times as long."""
    scenario = small(2)
    course = PublicDay.of(scenario.day(), Limits.of(scenario.network)).course()
    course.advance({})
    told, sent = [], []
    while not told or told[-1] != BACK:
        task = course.task
        assert task.iteration < 9, "a step a hundred times as long was never taken back"
        count = course.product_count
        if task.kind == "answer":
            past = {1: 0, 7: 3, 10: 2, 28: 4}.get(count, 0)
            upper = np.eye(past)[np.triu_indices(past)].tolist()
            products = [1.0, *upper, *[0.0] * (count - 1 - len(upper))] if count else []
            course.advance({"products": products, "cost": 1.0, "gap": 1.0, "fits": False})
            continue
        result = {"binding": msgspec.to_builtins(course.binding), "passes": 1}
        told.append(course.mixture.kind)
        sent.append(count)
        course.advance(result | ({"square": 1e4} if count else {}))
    mixed = told.index(MIX)
    assert told[mixed:] == [MIX, PLAIN, BACK]
    assert sent[mixed:] == [0, 1, 0]
