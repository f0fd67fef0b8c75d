"""Rules with a controller in the simulator: they reach a target, hold it, and follow when it is moved."""

import pytest

from bandpo.core.control import HELD
from bandpo.lab.bandit import simulate
from bandpo.lab.simulation import Simulation, SimulationResult, load_simulation
from bandpo.report.simulation import simulation_tables

SMALL = {"prompts": 32, "vocabulary": 16, "group": 8, "rollouts": 6, "updates": 4, "learning_rate": 1.0}


def held(metric, target, **options):
    return {"name": "band", "control": {"metric": metric, "target": target, **options}}


def test_it_goes_by_the_entropy_of_the_policy_that_samples(tmp_path):
    settings = Simulation(**SMALL, rules={"held": held("entropy", 2.0), "band": {"name": "band"}})
    result = simulate(settings)
    run, control = result.runs["held"], result.runs["held"].control
    assert result.runs["band"].control is None
    assert control.measured == pytest.approx(run.entropy_neutral.mean[:-1])
    assert len(set(control.value)) == len(control.value) == 6
    assert control.target == [2.0] * 6
    result.save(tmp_path / "a.json")
    assert SimulationResult.load(tmp_path / "a.json").runs["held"].control.target == control.target


@pytest.mark.parametrize("metric", ["clip_fraction", "divergence"])
def test_it_goes_by_the_updates_on_the_rollout_before(metric):
    run = simulate(Simulation(**SMALL, rules={"held": held(metric, 0.02)})).runs["held"]
    assert run.control.measured[0] is None
    assert run.control.value[0] == pytest.approx(0.05)
    assert len(set(run.control.value)) == 6
    if metric == "clip_fraction":
        shares = zip(run.clip_fraction_low.mean, run.clip_fraction_high.mean, strict=True)
        assert run.control.measured[1:] == pytest.approx([sum(one) for one in shares][:-1], rel=1e-5)


def test_changes_take_effect_where_they_say():
    rules = {"held": held("entropy", 2.0)}
    plain = simulate(Simulation(**SMALL, rules=rules)).runs["held"]
    for change in ({"learning_rate": 2.0}, {"target": 1.8}):
        changed = simulate(Simulation(**SMALL, rules=rules, changes={3: change})).runs["held"]
        assert changed.entropy_neutral.mean[:4] == plain.entropy_neutral.mean[:4]
        assert changed.entropy_neutral.mean[4] != plain.entropy_neutral.mean[4]
        assert changed.control.target == ([2.0] * 3 + [1.8] * 3 if "target" in change else [2.0] * 6)


def test_a_target_out_of_reach_is_said_under_the_table():
    settings = {**SMALL, "rollouts": 12, "rules": {"held": held("entropy", 2.7, limits=[0, 0.1])}}
    result = simulate(Simulation(**settings, changes={5: {"learning_rate": 0.5}}))
    warning = result.runs["held"].control.warning
    assert warning.startswith("control cannot reach its target: entropy is")
    table = next(table for table in simulation_tables(result) if table.title == "Controllers")
    assert f"held: {warning}" in table.notes
    assert [row[:4] for row in table.rows] == [["held", "1 to 5", 2.7, None], ["held", "6 to 12", 2.7, None]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"changes": {6: {"target": 1.0}}}, "changes has 6; allowed: a rollout from 1 to 5"),
        ({"changes": {2: {"target": 1.0}}}, "changes.2 has a target, but no rule has a control"),
        ({"changes": {2: {"learning_rate": 0}}}, "learning_rate"),
    ],
)
def test_changes_that_cannot_be_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        Simulation(**SMALL, **settings)


def test_a_rule_without_a_floor_is_refused_before_anything_runs():
    rules = {"held": {"name": "clip", "control": {"metric": "entropy", "target": 2.0}}}
    with pytest.raises(ValueError, match="moves the floor, which clip rule Clip does not have"):
        simulate(Simulation(**SMALL, rules=rules))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "settings", "targets"),
    [
        ("neutral", ["prompts=256", "learning_rate=0.3"], (2.6, 2.4)),
        ("neutral", ["prompts=256", "learning_rate=0.01", "optimizer=adam-shared"], (2.1, 2.3)),
        ("deciding", ["prompts=48", "learning_rate=0.3"], (2.2, 2.1)),
        ("deciding", ["prompts=48", "learning_rate=0.01", "optimizer=adam-shared"], (1.8, 1.65)),
    ],
)
def test_it_reaches_and_holds_a_target_and_follows_when_it_moves(name, settings, targets):
    """Within 20 rollouts, and from there on within 5%, before and after the target is moved."""
    rules = f"rules={{held: {{name: band, control: {{metric: entropy, target: {targets[0]}}}}}}}"
    changes = f"changes={{30: {{target: {targets[1]}}}}}"
    control = simulate(load_simulation(name, [*settings, "rollouts=60", rules, changes])).runs["held"].control
    for start in (0, 30):
        errors = control.errors(start, start + 30)
        reached = next(i for i, error in enumerate(errors) if abs(error) <= HELD)
        assert reached <= 20
        assert all(abs(error) <= HELD for error in errors[reached:]), errors
