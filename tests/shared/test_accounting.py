"""ε agrees with an independent accountant (dp-accounting's PLD), and behaves as composition must."""

import warnings
from random import Random

import numpy as np
import pytest
from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
from dp_accounting.pld import PLDAccountant
from hypothesis import given, settings
from hypothesis import strategies as st
from opacus.accountants import PRVAccountant, RDPAccountant

from shared.accounting import PRV, RDP, Release, epsilon

DELTA = 1e-5


def independent(history: list[Release], delta: float = DELTA) -> float:
    accountant = PLDAccountant()
    for release in history:
        event = PoissonSampledDpEvent(release.sampling_rate, GaussianDpEvent(release.noise_multiplier))
        accountant.compose(event, release.steps)
    return float(accountant.get_epsilon(delta))


@pytest.mark.parametrize(
    ("noise", "rate", "steps", "delta"),
    [
        (0.8, 0.01, 200, 1e-5),
        (1.0, 0.1, 10, 1e-6),
        (2.0, 0.05, 2000, 1e-5),
        (4.0, 0.01, 10, 1e-6),  # ε of 0.03
        (4.0, 0.01, 200, 1e-5),
        (20.0, 1.0, 1, 1e-6),
        (100.0, 1.0, 1, 1e-5),
        (1.0, 2e-3, 500, 1e-5),  # where RDP is four times as large
    ],
)
def test_epsilon_is_that_of_an_independent_accountant_within_one_percent(
    noise: float, rate: float, steps: int, delta: float
) -> None:
    history = [Release(noise, rate, steps)]
    truth = independent(history, delta)
    assert truth * 0.999 < epsilon(history, delta) < truth * 1.01


def test_releases_of_all_patients_and_of_samples_compose() -> None:
    history = [Release(8.0, 1.0, 2), Release(1.5, 0.05, 200), Release(2.5, 0.05, 100)]
    assert epsilon(history, DELTA) == pytest.approx(independent(history), rel=0.01)


def test_the_looser_bound_is_not_below_the_stated_one() -> None:
    history = [Release(1.1, 0.05, 300)]
    assert epsilon(history, DELTA, RDP) > epsilon(history, DELTA) > 0.0


@pytest.mark.parametrize(("noise", "rate", "steps"), [(0.6, 0.1, 30), (4.7, 0.5, 40), (2.0, 1.0, 3), (30.0, 0.95, 9)])
def test_both_are_those_of_the_accountants_of_opacus(noise: float, rate: float, steps: int) -> None:
    """Whose parts are put together here as they are there, but for what is the same in every call."""
    prv, rdp = PRVAccountant(), RDPAccountant()
    prv.history = rdp.history = [(noise, rate, steps)]
    with warnings.catch_warnings(), np.errstate(divide="ignore"):
        warnings.filterwarnings("ignore", "Optimal order is the")
        theirs = {PRV: prv.get_epsilon(DELTA, eps_error=0.001), RDP: rdp.get_epsilon(DELTA)}
    for kind, rel in ((PRV, 0.01), (RDP, 0.03)):  # of RDP there are fewer orders here
        assert epsilon([Release(noise, rate, steps)], DELTA, kind) == pytest.approx(theirs[kind], rel=rel)


def test_what_protects_nobody_is_bounded_too() -> None:
    history = [Release(0.2, 1.0, 40)]
    assert epsilon(history, DELTA) == epsilon(history, DELTA, RDP) > 500.0


def test_nothing_released_costs_nothing() -> None:
    assert epsilon([], DELTA) == 0.0


RELEASES = st.builds(Release, st.sampled_from([8.0, 12.0]), st.sampled_from([0.05, 1.0]), st.integers(1, 30))


@settings(max_examples=10)
@given(st.lists(RELEASES, min_size=2, max_size=4), st.randoms(use_true_random=False))
def test_neither_order_nor_the_cutting_of_steps_matters_and_more_costs_more(
    history: list[Release], random: Random
) -> None:
    whole = epsilon(history, DELTA, RDP)
    single = [Release(r.noise_multiplier, r.sampling_rate) for r in history for _ in range(r.steps)]
    random.shuffle(single)
    assert epsilon(single, DELTA, RDP) == whole
    assert epsilon(history[:-1], DELTA, RDP) < whole


def test_a_release_more_never_states_less() -> None:
    """Over the border between two precisions too: a budget would else be passed by going on."""
    stated = [epsilon([Release(4.0, 1.0, steps)], DELTA) for steps in range(1, 7)]
    assert stated == sorted(stated)
