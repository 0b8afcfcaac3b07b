"""ε agrees with an independent accountant (dp-accounting's PLD), and behaves as composition must."""

import itertools

import pytest
from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
from dp_accounting.pld import PLDAccountant

from shared.accounting import RDP, Release, epsilon

DELTA = 1e-5


def independent(history: list[Release]) -> float:
    accountant = PLDAccountant()
    for release in history:
        event = PoissonSampledDpEvent(release.sampling_rate, GaussianDpEvent(release.noise_multiplier))
        accountant.compose(event, release.steps)
    return float(accountant.get_epsilon(DELTA))


@pytest.mark.parametrize(
    ("noise", "rate", "steps"), list(itertools.product((0.8, 1.0, 2.0, 4.0), (0.01, 0.1, 0.5), (10, 200)))
)
def test_epsilon_is_that_of_an_independent_accountant_within_one_percent(noise: float, rate: float, steps: int) -> None:
    history = [Release(noise, rate, steps)]
    assert epsilon(history, DELTA) == pytest.approx(independent(history), rel=0.01)


def test_releases_of_all_patients_and_of_samples_compose() -> None:
    history = [Release(8.0, 1.0, 2), Release(1.5, 0.05, 200), Release(2.5, 0.05, 100)]
    assert epsilon(history, DELTA) == pytest.approx(independent(history), rel=0.01)


def test_the_looser_bound_is_not_below_the_stated_one() -> None:
    history = [Release(1.1, 0.05, 300)]
    assert epsilon(history, DELTA, RDP) > epsilon(history, DELTA) > 0.0


def test_nothing_released_costs_nothing_and_every_release_costs_more() -> None:
    once = [Release(2.0, 0.1, 10)]
    assert epsilon([], DELTA) == 0.0
    assert (
        epsilon(once, DELTA)
        < epsilon([*once, *once], DELTA)
        == pytest.approx(epsilon([Release(2.0, 0.1, 20)], DELTA), rel=1e-3)
    )
