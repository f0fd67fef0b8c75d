"""Controllers: the numbers they move, their limits, and plants that can be worked out by hand."""

import json
import math
import random
from dataclasses import dataclass

import pytest

from bandpo import Band, ClipRule
from bandpo.core.control import METRICS, PATIENCE, Control, Controller, make_controlled
from bandpo.integrations.common import read_rule


def made(rule="band", **options):
    split = {key: options.pop(key) for key in [*options] if key in ("radius", "floor", "table", "divergence")}
    return make_controlled(rule, control={"metric": "entropy", "target": 0.5, **options}, **split)[1]


def follow(controller, plant, rollouts):
    """Measurements of `plant`, a function of the rule, over the rollouts."""
    seen = []
    for _ in range(rollouts):
        seen.append(plant(controller.rule))
        controller.add(seen[-1])
        controller.move()
    return seen


def test_entropy_reaches_its_target_where_the_floor_sets_its_drift():
    """An integrator, as entropy is: it drifts in proportion to ln(width) beyond that of floor .7."""
    for speed in (0.01, 0.05):
        controller = made(target=2.0, gain=None)
        entropy = [2.4]

        def plant(rule, entropy=entropy, speed=speed):
            entropy.append(entropy[-1] + speed * (math.log(0.3) - math.log(1 - rule.floor)))
            return entropy[-1]

        seen = follow(controller, plant, 60)
        assert all(abs(h - 2.0) < 0.1 for h in seen[30:]), seen
        assert min(seen) > 1.9


@pytest.mark.parametrize(("metric", "power"), [("clip_fraction", -1.0), ("clip_fraction", -2.0), ("divergence", 0.7)])
def test_the_radius_finds_what_is_in_proportion_to_a_power_of_it(metric, power):
    controller = made(metric=metric, target=0.04, radius=0.05)
    noise = random.Random(0)
    seen = follow(controller, lambda rule: 0.02 * (rule.radius / 0.05) ** power * noise.uniform(0.95, 1.05), 40)
    assert all(abs(x / 0.04 - 1) < 0.15 for x in seen[15:]), seen
    assert controller.rule.radius == pytest.approx(0.05 * 2 ** (1 / power), rel=0.15)


def test_a_pair_of_radii_keeps_its_proportion():
    controller = made(metric="divergence", target=0.01, radius=[0.02, 0.08])
    assert controller.rule.radius == pytest.approx((0.02, 0.08))
    controller.add(0.02)
    controller.move()
    low, high = controller.rule.radius
    assert low < 0.02
    assert high / low == pytest.approx(4)
    assert controller.value == low


def test_it_says_once_that_the_target_is_out_of_reach_and_comes_back_at_once():
    controller = made(target=2.0, limits=[0.1, 0.9])
    said = []
    for _ in range(3 * PATIENCE):
        controller.add(1.0)
        said.append(controller.move())
    assert [bool(text) for text in said] == [i == PATIENCE - 1 for i in range(3 * PATIENCE)]
    assert said[PATIENCE - 1] == (
        "control cannot reach its target: entropy is 1 and not 2, no nearer than 10 rollouts ago, with the floor at "
        "0.9 within the limits 0.1 to 0.9; it keeps trying"
    )
    assert controller.rule.floor == pytest.approx(0.9)
    assert controller.stuck
    controller.add(2.05)  # no wound-up integral keeps it there
    assert controller.move() is None
    assert 0.4 < controller.rule.floor < 0.6
    assert not controller.stuck


def test_close_to_a_limit_it_says_so_too():
    controller = made(target=0.7)
    said = []
    for i in range(20):  # as the floor of a transformer's entropy that falls whatever the floor does
        controller.add(0.74 - 0.01 * min(i, 9))
        said.append(controller.move())
    assert controller.rule.floor < 0.98
    assert [i for i, text in enumerate(said) if text] == [17]


def test_around_its_target_nothing_is_said():
    controller = made(target=1.0)
    for i in range(6 * PATIENCE):
        controller.add(1.3 if i // 6 % 2 else 0.7)
        assert controller.move() is None


def test_on_the_way_from_a_limit_nothing_is_said():
    controller = made(target=2.0)
    for i in range(4 * PATIENCE):
        controller.add(1.0 + 0.02 * i)
        assert controller.move() is None


def test_it_moves_by_the_mean_once_and_not_without_a_measurement():
    one, other = made(smoothing=0.5), made(smoothing=0.5)
    for value in (0.5, 0.75, math.nan):
        one.add(value)
    other.add(0.625)
    for controller in (one, other):
        before = controller.rule
        controller.move()
        assert controller.rule != before
    assert one.state == other.state
    before = one.rule
    assert one.move() is None
    assert one.rule == before
    one.add(0.875)
    one.move()
    assert one.state.smoothed == pytest.approx(0.75)


def test_the_state_goes_through_json_to_the_bit():
    one = made(target=0.3, floor=0.2)
    follow(one, lambda rule: 0.5 - rule.floor / 7, 5)
    one.add(0.1)
    other = made(target=0.3, floor=0.2)
    other.load_state_dict(json.loads(json.dumps(one.state_dict())))
    for controller in (one, other):
        controller.move()
    assert one.state == other.state
    assert one.rule == other.rule


def test_a_floor_that_is_set_is_the_start_value():
    assert made(floor=0.4).rule.floor == pytest.approx(0.4)
    assert made().rule.floor == pytest.approx(0.7)
    assert made(limits=[0, 0.5]).rule.floor == pytest.approx(0.5)
    assert make_controlled("band", floor=0.4)[1] is None


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("name", ["band", "adaptive-band"])
def test_whatever_moves_the_rule_stays_one(metric, name):
    controller = made(name, metric=metric, target=0.5)
    for value in (1e-9, 0.0, 1e9, 0.5):
        controller.add(value)
        controller.move()
        assert type(controller.rule) is type(make_controlled(name)[0])


@dataclass(frozen=True)
class Fixed(ClipRule):
    width: float = 0.2

    def limits(self, tokens):
        raise NotImplementedError


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"metric": "entropie"},
            r"control: unknown metric 'entropie' \(did you mean 'entropy'\?\); known: entropy, ",
        ),
        ({"target": 0}, "control: target is 0; allowed: a finite number > 0"),
        ({"target": "high"}, "control: target is 'high'; allowed: a finite number > 0"),
        ({"target": math.inf}, "control: target is inf; allowed: a finite number > 0"),
        ({"gain": -1}, "control: gain is -1; allowed: a finite number >= 0"),
        (
            {"gain": 0, "integral": 0},
            "control: gain and integral are both 0, so nothing would move; allowed: one of them 0",
        ),
        ({"smoothing": 1}, "control: smoothing is 1; allowed: a number from 0 to below 1"),
        ({"limits": [0.9, 0.1]}, r"control: limits are \[0.9, 0.1\]; allowed: \[smallest, largest\]"),
        ({"limits": 0.9}, r"control: limits are 0.9; allowed: two numbers"),
        ({"limits": [0, 1]}, "control: limit of the floor is 1; allowed: a number from 0 to below 1"),
        (
            {"limits": [0, 0.5], "floor": 0.7},
            r"control: the rule's floor is 0.7; allowed: a number within limits, \[0, 0.5\]",
        ),
        (
            {"metric": "divergence", "limits": [0, 1]},
            "control: limit of the radius is 0; allowed: a finite number > 0",
        ),
        (
            {"metric": "divergence", "table": True},
            "control of the radius needs a radius that is a number, and table=False",
        ),
        ({"goal": 1}, "control has no option 'goal' .*; it takes: metric, target, gain, integral, limits, smoothing"),
    ],
)
def test_bad_settings_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        made(**options)


def test_a_rule_without_the_number_is_refused_with_those_that_have_it():
    with pytest.raises(
        ValueError, match=r"moves the floor, which clip rule Clip does not have; rules that have it: band"
    ):
        made("clip")
    with pytest.raises(ValueError, match="moves the radius, which clip rule Fixed does not have"):
        Controller(Control("divergence", 0.1), Fixed())
    for bad, message in (
        ("entropy", "control is 'entropy'; allowed: a mapping"),
        ({"target": 1}, "control has no metric"),
    ):
        with pytest.raises(ValueError, match=message):
            make_controlled("band", control=bad)


def test_frameworks_that_cannot_keep_a_controller_say_who_can():
    options = {"name": "band", "control": {"metric": "entropy", "target": 0.5}}
    for framework in ("verl", "SkyRL", "slime"):
        with pytest.raises(
            ValueError, match=f"needs control: {framework} cannot give it; suppliers that can: TRL's Band"
        ):
            read_rule(options, framework)
    assert read_rule({"name": "band", "control": None}, "verl") == Band()
