import json
import math
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from equilibrate.errors import ConfigError, NumericsError
from equilibrate.ppo.lagrangian import (
    CostWindow,
    DelayedMultiplier,
    LogSgdMultiplier,
    NoMultiplier,
    PidMultiplier,
    ProjectedMultiplier,
)


def log_sgd(init=1.0, lr=0.1, maximum=5.0, budget=0.0):
    return LogSgdMultiplier(init=init, lr=lr, maximum=maximum, budget=budget)


def projected(init=1.0, lr=0.1, maximum=5.0, budget=0.0):
    return ProjectedMultiplier(init=init, lr=lr, maximum=maximum, budget=budget)


def pid(init=0.0, kp=0.0, ki=0.0, kd=0.0, maximum=5.0, budget=0.0):
    return PidMultiplier(init=init, kp=kp, ki=ki, kd=kd, maximum=maximum, budget=budget)


MAKERS = [log_sgd, projected, lambda **k: pid(init=1.0, kp=0.5, ki=0.1, kd=0.3, **k), NoMultiplier]
costs = st.floats(-1e3, 1e3)


@given(st.floats(1e-3, 4.9), costs, st.floats(-5, 5))
def test_log_sgd_equals_its_closed_form(init, cost, budget):
    controller = log_sgd(init=init, budget=budget)
    exponent = 0.1 * init * (cost - budget)
    expected = 5.0 if exponent > 10 else min(init * math.exp(exponent), 5.0)
    assert controller.update(cost) == pytest.approx(expected, rel=1e-9)


def test_log_sgd_by_hand():
    # 2 * exp(.1 * 2 * (1.5 - .5)) = 2 e^.2
    assert log_sgd(init=2.0, budget=0.5).update(1.5) == pytest.approx(2 * math.exp(0.2))


@given(st.lists(costs, max_size=30))
def test_log_sgd_stays_positive_and_bounded(sequence):
    controller = log_sgd(lr=10.0)
    for cost in sequence:
        assert 0 < controller.update(cost) <= 5.0


def test_log_sgd_survives_underflow_and_reaches_the_maximum_exactly():
    controller = log_sgd(lr=1e6)
    assert controller.update(-1e6) == sys.float_info.min
    assert log_sgd().update(1e6) == 5.0


@pytest.mark.parametrize("init", [0.0, -1.0, 6.0])
def test_log_sgd_refuses_a_start_it_could_not_leave(init):
    with pytest.raises(ConfigError, match=r"constraint\.init"):
        log_sgd(init=init)


def test_projected_by_hand():
    controller = projected(budget=0.5)
    assert controller.update(2.5) == pytest.approx(1.2)  # 1 + .1 * 2
    assert controller.update(-100.0) == 0.0  # floor
    assert controller.update(1.5) == pytest.approx(0.1)  # leaves 0 again
    assert controller.update(1e3) == 5.0  # cap


@pytest.mark.parametrize("make", [log_sgd, projected])
@given(cost=costs, budget=st.floats(-2, 2))
def test_multiplier_rises_exactly_when_cost_exceeds_the_budget(make, cost, budget):
    controller = make(budget=budget)
    value = controller.update(cost)
    if abs(cost - budget) > 1e-9:
        assert (value > 1.0) == (cost > budget)
        assert (value < 1.0) == (cost < budget)


@pytest.mark.parametrize("make", MAKERS[:2])
def test_cost_at_the_budget_moves_nothing(make):
    assert make(budget=0.3).update(0.3) == 1.0


def test_pid_proportional_term_follows_the_violation():
    controller = pid(kp=0.5, budget=1.0)
    assert controller.update(3.0) == 1.0  # .5 * 2
    assert controller.update(0.0) == 0.0  # clipped
    assert controller.update(1e3) == 5.0


def test_pid_integral_sums_the_violation_and_stops_at_zero():
    controller = pid(ki=0.1)
    assert controller.update(2.0) == pytest.approx(0.2)
    assert controller.update(3.0) == pytest.approx(0.5)
    assert controller.update(-100.0) == 0.0
    # had the integral gone to -95, 3 more would change nothing
    assert controller.update(3.0) == pytest.approx(0.3)


def test_pid_starts_at_init_and_holds_it_on_budget():
    controller = pid(init=1.5, ki=0.1, budget=0.2)
    assert controller.value == 1.5
    assert controller.update(0.2) == pytest.approx(1.5)


def test_pid_does_not_wind_up_at_the_maximum():
    controller = pid(ki=1.0, maximum=5.0)
    for _ in range(100):
        controller.update(4.0)
    assert controller.value == 5.0
    # 4 went in (lambda 4), 8 would exceed 5 and stayed out: one step below budget is felt at once
    assert controller.update(-1.0) == pytest.approx(3.0)


def test_pid_integral_falls_even_while_saturated():
    controller = pid(init=5.0, ki=1.0, kd=1e3, maximum=5.0)
    controller.update(-2.0)  # I = 3
    assert controller.update(-1.0) == 5.0  # the cost rises: the derivative saturates, I = 2
    assert controller.update(-1.0) == 5.0  # the smoothed cost is still rising, I = 1
    assert controller.state_dict()["integral"] == pytest.approx(1.0)


def test_pid_derivative_acts_on_the_smoothed_rise_alone():
    controller = pid(kd=2.0)
    assert controller.update(1.0) == 0.0  # nothing to compare with
    # smoothed: .8 * 1 + .2 * 2 = 1.2, rise .2
    assert controller.update(2.0) == pytest.approx(0.4)
    assert controller.update(-5.0) == 0.0  # falling cost does not push


@given(st.lists(costs, max_size=30))
def test_pid_stays_within_bounds(sequence):
    controller = pid(init=1.0, kp=1.0, ki=0.5, kd=0.5)
    for cost in sequence:
        assert 0.0 <= controller.update(cost) <= 5.0


def test_no_multiplier_is_plain_ppo():
    controller = NoMultiplier()
    assert controller.update(1e9) == controller.value == 0.0


@pytest.mark.parametrize("make", MAKERS[:3])
@pytest.mark.parametrize("cost", [math.nan, math.inf])
def test_costs_that_are_not_finite_are_refused_and_change_nothing(make, cost):
    controller = make()
    before = controller.state_dict()
    with pytest.raises(NumericsError, match="must be finite"):
        controller.update(cost)
    assert controller.state_dict() == before


@pytest.mark.parametrize("make", MAKERS)
def test_delay_freezes_the_first_updates_and_only_those(make):
    delayed, plain = DelayedMultiplier(make(), delay=2), make()
    start = plain.value
    assert delayed.update(3.0) == delayed.update(3.0) == delayed.value == start
    assert delayed.update(3.0) == plain.update(3.0)


@pytest.mark.parametrize("make", MAKERS)
def test_state_survives_json_and_continues_exactly(make):
    first, second = (DelayedMultiplier(make(), delay=d) for d in (2, 0))
    for cost in (1.0, 2.0, 0.5, 1.7):
        first.update(cost)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for cost in (0.3, -2.0, 4.0):
        assert second.update(cost) == first.update(cost)


def test_window_keeps_the_last_episodes():
    window = CostWindow(3)
    window.extend([1.0, 2.0])
    assert window.mean() == 1.5
    window.extend([3.0, 7.0])
    assert len(window) == 3
    assert window.mean() == 4.0  # (2 + 3 + 7) / 3


def test_window_state_survives_json_and_replaces_what_was_there():
    first, second = CostWindow(2), CostWindow(2)
    first.extend([0.1, 0.2, 0.3])
    second.extend([9.0])
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    first.extend([0.7])
    second.extend([0.7])
    assert first.mean() == second.mean() == 0.5


def test_empty_window_has_no_mean():
    with pytest.raises(ValueError, match="empty"):
        CostWindow(3).mean()
