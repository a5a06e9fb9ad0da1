"""Deep linear models with cross-entropy, where only upper bounds are known: oracle O8 of the specification."""

import jax.random as jr
import numpy as np
import pytest
from neuralcollapse import ufm


def test_collapse_to_a_simplex_frame_is_not_optimal_in_deep_models():
    # The counterexamples, strict, and their published values at n = 1 and all strengths 1e-3.
    values = {
        (6, 2): (0.031490, 0.029568),
        (10, 2): (0.056678, 0.050017),
        (10, 4): (0.054672, 0.040436),
        (4, 3): None,
    }
    for (classes, depth), known in values.items():
        frame = ufm.deep_ce_etf(classes, 1, depth, 1e-3, 1e-3)
        pairs = ufm.deep_ce_cross_polytope(classes, 1, depth, 1e-3, 1e-3)
        assert pairs.loss < frame.loss
        assert pairs.rank == classes // 2
        assert frame.rank == classes - 1
        if known is not None:
            np.testing.assert_allclose([frame.loss, pairs.loss], known, atol=1e-6)


def test_the_simplex_frame_is_the_better_one_at_depth_one_and_for_four_classes_at_depth_two():
    for classes, depth in ((4, 2), (4, 1), (6, 1), (10, 1)):
        frame = ufm.deep_ce_etf(classes, 1, depth, 1e-3, 1e-3)
        assert frame.loss < ufm.deep_ce_cross_polytope(classes, 1, depth, 1e-3, 1e-3).loss


def test_at_depth_one_the_frame_is_the_certified_minimum():
    for size, lam in ((1, 1e-3), (10, 1e-2), (10, 0.2)):
        frame = ufm.deep_ce_etf(4, size, 1, lam, lam)
        exact = ufm.solve_convex("ce", [size] * 4, lam, lam)
        np.testing.assert_allclose(frame.loss, exact.loss, atol=1e-12)
        np.testing.assert_allclose(frame.logits, exact.logits, atol=1e-6)


@pytest.mark.parametrize(("classes", "depth"), [(6, 2)])
def test_search_is_at_least_as_good_as_both_families(classes, depth):
    found = ufm.deep_ce_search([1] * classes, depth, 1e-3, 1e-3, key=jr.key(0), num_starts=12)
    families = [f(classes, 1, depth, 1e-3, 1e-3).loss for f in (ufm.deep_ce_etf, ufm.deep_ce_cross_polytope)]
    assert found.loss <= min(families) + 1e-9
    assert found.rank < classes - 1


def test_bad_input():
    with pytest.raises(ValueError, match="must be even"):
        ufm.deep_ce_cross_polytope(5, 1, 2, 1e-3, 1e-3)
    with pytest.raises(ValueError, match="`num_classes` must be"):
        ufm.deep_ce_etf(1, 1, 2, 1e-3, 1e-3)
    with pytest.raises(ValueError, match="`lam_H` must be positive"):
        ufm.deep_ce_etf(4, 1, 2, 1e-3, 0.0)
    with pytest.raises(ValueError, match="`num_starts` must be"):
        ufm.deep_ce_search([1, 1], 2, 1e-3, 1e-3, key=jr.key(0), num_starts=0)
