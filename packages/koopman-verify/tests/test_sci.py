import dataclasses
import itertools as it

import pytest
from hypothesis import given, strategies as st
from koopman_verify import sci


_targets = ("approximate point spectrum", "pseudospectrum", "eigenfunctions")


def _problem(target="approximate point spectrum", preserving=False, modulus=False, **kw):
    return sci.Problem(target, measure_preserving=preserving, modulus=modulus, **kw)


@pytest.mark.parametrize(
    ("target", "preserving", "modulus", "label"),
    [
        ("pseudospectrum", True, True, "Sigma_1"),
        ("pseudospectrum", True, False, "Sigma_2"),
        ("pseudospectrum", False, True, "Sigma_1"),
        ("pseudospectrum", False, False, "Sigma_2"),
        ("approximate point spectrum", True, True, "Sigma_1"),
        ("approximate point spectrum", True, False, "Sigma_2"),
        ("approximate point spectrum", False, True, "Pi_2"),
        ("approximate point spectrum", False, False, "Pi_3"),
    ],
)
def test_table(target, preserving, modulus, label):
    tower = sci.classify(_problem(target, preserving, modulus))
    assert tower.label == label
    assert tower.num_limits == int(label[-1])
    assert tower.side == ("inside" if label.startswith("Sigma") else "outside")
    assert tower.error_control == (label == "Sigma_1")


def test_finite_data_of_disc_maps_is_undetermined():
    for preserving in (True, False):
        tower = sci.classify(_problem(preserving=preserving, finite_data=True))
        assert tower.verdict == "undetermined without a modulus"
    known = sci.classify(_problem(preserving=True, modulus=True, finite_data=True)).verdict
    assert known == "a verified part from inside; all of it only as N -> infinity"
    assert sci.classify(_problem(modulus=True, finite_data=True)).verdict.startswith("undetermined: no error")


def test_limits_are_named_outermost_first():
    assert sci.classify(_problem()).limits == ("epsilon -> 0", "N -> infinity", "M -> infinity")
    assert sci.classify(_problem(modulus=True)).limits == ("epsilon -> 0", "N -> infinity")
    assert sci.classify(_problem(preserving=True)).limits == ("N -> infinity", "M -> infinity")


def test_reproducing_kernel_spaces_need_no_data_limit_but_have_no_isometry():
    tower = sci.classify(_problem(preserving=True, rkhs=True))
    assert tower.limits == ("epsilon -> 0", "N -> infinity")
    assert tower.source == "arXiv:2506.15782"
    assert sci.classify(_problem("pseudospectrum", rkhs=True)).label == "Sigma_1"


def test_what_is_not_verified_is_not_claimed():
    assert sci.classify(_problem(preserving=True)).lower_status == "derived"
    assert sci.classify(_problem()).lower_status == "reported"
    unknown = sci.classify(_problem(modulus=True))
    assert unknown.lower_status == "unverified"
    assert unknown.optimal is None
    tori = sci.classify(_problem("eigenfunctions"))
    assert (tori.num_limits, tori.upper_status, tori.optimal) == (3, "reported", True)


@given(st.sampled_from(_targets), *[st.booleans()] * 4)
def test_knowing_more_never_needs_more_limits(target, preserving, modulus, exact, rkhs):
    problem = sci.Problem(target, preserving, modulus, exact, rkhs)
    tower = sci.classify(problem)
    for name in ("modulus", "exact", *(() if rkhs else ("measure_preserving",))):
        more = sci.classify(dataclasses.replace(problem, **{name: True}))
        assert more.num_limits <= tower.num_limits


def test_every_problem_prints():
    for target, flags in it.product(_targets, it.product((False, True), repeat=5)):
        text = str(sci.classify(sci.Problem(target, *flags)))
        assert target in text
        assert "limit" in text or "undetermined" in text or "verified part" in text
    lines = sci.table().splitlines()
    assert len(lines) == 5
    assert len({line.count("|") for line in lines}) == 1
    assert "Pi_3 (3; fewer: impossible (reported))" in lines[2]


def test_another_target_raises():
    with pytest.raises(ValueError, match="`target` must be one of"):
        sci.Problem("spectrum")
