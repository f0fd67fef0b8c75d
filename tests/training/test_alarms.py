"""Alarms on synthetic metric rows, and through a real training run with its resume."""

import copy
import io
import re
import warnings
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from rich.console import Console

from bandpo import Band, Clip
from bandpo.runs.callbacks import Alarms
from bandpo.runs.config import ModelConfig, load_config
from bandpo.training import BandGRPOConfig, BandGRPOTrainer
from bandpo.training.alarms import ALARMS, AlarmConfig, Watch, known_causes
from helpers import QUIET_ON_CPU

CONFIG = AlarmConfig(window=2, rollouts=2)
NAMES = [alarm.name for alarm in ALARMS]


def update(**changes):
    """A log line of a healthy run with several updates per rollout."""
    return {
        "entropy": 0.5,
        "grad_norm": 1.0,
        "learning_rate": 1e-5,
        "band/ratio_max": 1.5,
        "band/ratio_min": 0.6,
        "band/cap_fraction": 0.0,
        "band/first_distance": 0.001,
        "band/control_stuck": 0.0,
        "band/control_measured": 0.4,
        "band/control_value": 0.99,
        "reward": 0.3,
        "frac_reward_zero_std": 0.3,
        "completions/clipped_ratio": 0.1,
        "sampling/sampling_logp_difference/mean": 0.02,
        "sampling/importance_sampling_ratio/mean": 1.0,
        **{name.replace("__", "/"): value for name, value in changes.items()},
    }


SICK = {
    "entropy_collapse": {"entropy": 0.05},
    "entropy_explosion": {"entropy": 1.45},
    "nothing_clips": {"band__ratio_max": 1.0, "band__ratio_min": 1.0},
    "off_policy_unseen": {
        "band__ratio_max": 1.0,
        "band__ratio_min": 1.0,
        "sampling__sampling_logp_difference__mean": 0.05,
    },
    "first_update_moved": {"band__first_distance": 0.03},
    "cap_binds": {"band__cap_fraction": 0.015},
    "control_limit": {"band__control_stuck": 1.0},
    "sampler_drift": {"sampling__sampling_logp_difference__mean": 0.15},
    "zero_variance": {"frac_reward_zero_std": 1.0},
    "truncated": {"completions__clipped_ratio": 0.97},
}


def events(rows, config=CONFIG):
    """(step, alarm, event) of everything that happens along the rows, whose steps count from 1."""
    watch = Watch(config)
    return [(e.step, e.alarm, e.event) for n, row in enumerate(rows, 1) for e in watch.add({"step": n, **row})]


def test_every_name_of_the_configuration_has_an_alarm():
    assert set(SICK) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_fires_once_clears_and_fires_again(name):
    healthy, sick = update(), update(**SICK[name])
    rows = [healthy] * 4 + [sick] * 6 + [healthy] * 3 + [sick] * 3
    found = events(rows)
    # Windows of two: entirely sick with the second sick row; cleared with the first or second healthy one.
    assert [e[1:] for e in found] == [(name, "fired"), (name, "cleared"), (name, "fired")]
    assert found[0][0] == 6
    assert found[1][0] in (11, 12)
    assert found[2][0] == 15


@pytest.mark.parametrize("name", NAMES)
def test_waits_for_a_full_window(name):
    assert events([update(**SICK[name])]) == []


def test_entropy_waits_until_its_windows_are_apart():
    rows = [update(entropy=e) for e in (2.0, 0.01, 0.01, 0.01)]
    assert events(rows) == [(4, "entropy_collapse", "fired")]


def test_a_healthy_run_is_quiet():
    assert events([update()] * 50, AlarmConfig()) == []


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("entropy_collapse", {"entropy": 0.11}),  # below the share of 0.5 but not below 0.1
        ("entropy_explosion", {"entropy": 0.99}),  # above 1.2 times 0.5 but not above 1 nat
        ("nothing_clips", {"band__ratio_max": 1.0, "band__ratio_min": 0.9999}),
        ("off_policy_unseen", {"band__ratio_max": 1.01, "sampling__sampling_logp_difference__mean": 0.09}),
        ("first_update_moved", {"band__first_distance": 0.019}),
        ("cap_binds", {"band__cap_fraction": 0.0099}),
        ("sampler_drift", {"sampling__sampling_logp_difference__mean": 0.099}),
        ("zero_variance", {"frac_reward_zero_std": 0.98}),
        ("truncated", {"completions__clipped_ratio": 0.94}),
    ],
)
def test_is_quiet_just_within_the_limit(name, changes):
    assert events([update()] * 4 + [update(**changes)] * 6) == []


def test_entropy_must_fall_below_the_share_of_its_start_too():
    low = [update(entropy=0.12)] * 4 + [update(entropy=0.05)] * 6  # a policy that began nearly deterministic
    assert events(low) == []
    assert events([*low, *[update(entropy=0.029)] * 2]) == [(12, "entropy_collapse", "fired")]


def test_entropy_must_rise_above_the_level_too():
    assert events([update(entropy=0.02)] * 4 + [update(entropy=0.9)] * 6) == []


def test_entropy_that_rises_with_the_reward_is_quiet():
    start = [update(entropy=2.0, reward=0.1)] * 2
    assert events([*start, *[update(entropy=2.39, reward=0.1)] * 6]) == []
    assert events([*start, *[update(entropy=2.41, reward=0.1)] * 6]) == [(4, "entropy_explosion", "fired")]
    assert events([*start, *[update(entropy=2.41, reward=0.2)] * 6]) == []
    # Only the first update of a rollout has a reward; the lines between are not read.
    between = {"entropy": 9.0, "grad_norm": 1.0}
    assert events([*start, *[between, update(entropy=2.0, reward=0.1)] * 6]) == []


def test_the_start_is_remembered_over_a_long_run():
    rows = [update(entropy=2.0)] * 2 + [update(entropy=0.3)] * 500
    assert events(rows) == []
    assert events([*rows, *[update(entropy=0.09)] * 2]) == [(504, "entropy_collapse", "fired")]


def test_hysteresis_keeps_a_flickering_alarm_to_one_event():
    shares = [0.011, 0.011, 0.009, 0.009, 0.011, 0.011, 0.0085, 0.0085, 0.011, 0.011]
    rows = [update(band__cap_fraction=s) for s in shares]
    assert events(rows) == [(2, "cap_binds", "fired")]
    assert len(events(rows, AlarmConfig(window=2, rollouts=2, clear=1.0))) == 5


def test_ratios_of_1_say_nothing_while_nothing_moves():
    ones = {"band__ratio_max": 1.0, "band__ratio_min": 1.0}
    assert events([update(grad_norm=0.0, **ones)] * 6) == []
    assert events([update(learning_rate=0.0, **ones)] * 6) == []
    # and leave an alarm as it was
    rows = [update(**ones)] * 2 + [update(grad_norm=0.0, **ones)] * 4 + [update(**ones)] * 2
    assert events(rows) == [(2, "nothing_clips", "fired")]


def test_a_first_update_with_ratio_1_is_ordinary():
    first = update(band__ratio_max=1.0, band__ratio_min=1.0)
    assert events([first, update(), update(), update()] * 6, AlarmConfig()) == []


def test_truncation_that_the_reward_does_not_suffer_from_is_quiet():
    start = [update(reward=0.1)] * 2
    assert events(start + [update(reward=0.9, **SICK["truncated"])] * 6) == []
    assert [e[1] for e in events(start + [update(reward=0.1, **SICK["truncated"])] * 6)] == ["truncated"]
    # Rewards below 0 count as gained when they rise, too.
    start = [update(reward=-1.0)] * 2
    assert events(start + [update(reward=-0.5, **SICK["truncated"])] * 6) == []
    assert [e[1] for e in events(start + [update(reward=-0.99, **SICK["truncated"])] * 6)] == ["truncated"]


def test_a_run_with_every_completion_truncated_keeps_its_alarm():
    sick = {"completions__clipped_ratio": 1.0}
    rewards = [0.0, 0.0, 0.0, 0.0, 0.03125, 0.5, 0.9]
    assert events([update(reward=r, **sick) for r in rewards]) == [(2, "truncated", "fired")]
    healed = [update(reward=r, **sick) for r in rewards] + [update()] * 2
    assert [e[1:] for e in events(healed)] == [("truncated", "fired"), ("truncated", "cleared")]
    # A rise from 0 by one answer in a hundred is none.
    sick = {"completions__clipped_ratio": 0.99}
    assert events([update(reward=r, **sick) for r in (0.0, 0.0, 0.01, 0.01)]) == [(2, "truncated", "fired")]


def test_the_gap_to_the_sampler_counts_in_the_lines_between_rollouts_too():
    ones = {"band__ratio_max": 1.0, "band__ratio_min": 1.0}
    first = update(**ones, sampling__sampling_logp_difference__mean=0.05)
    later = {k: v for k, v in update(**ones).items() if not k.startswith("sampling/")}
    assert events([first, later] * 4) == [(2, "off_policy_unseen", "fired")]
    assert events([later] * 8) == [(2, "nothing_clips", "fired")]


def test_the_first_update_names_what_fits_the_run(tiny):
    def causes(model=tiny[0], **settings):
        return known_causes(SimpleNamespace(**{"anchor": "old", "disable_dropout": False, **settings}), model)[
            "first_update_moved"
        ]

    assert "attention kernel" in causes()[0]
    assert "train.anchor=sampler" in causes(anchor="sampler")[0]
    sick = copy.deepcopy(tiny[0])
    sick.config.attention_dropout = 0.1
    assert causes(sick) == (
        "fits this run: dropout is on (attention_dropout=0.1), so each forward pass gives different log-probs",
    )
    assert "attention kernel" in causes(sick, disable_dropout=True)[0]
    sick.add_module("extra", torch.nn.Dropout(0.25))
    assert "p=0.25" in causes(sick)[0]
    event = Watch(AlarmConfig(rollouts=1), {"first_update_moved": ("because",)}).add(
        {"step": 1, "band/first_distance": 0.5}
    )[0]
    assert event.advice[0] == "because"


@pytest.mark.slow
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_dropout_is_noticed_in_the_first_update_of_a_rollout(tmp_path, tiny, dropout):
    model = copy.deepcopy(tiny[0])
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = dropout
    model.config.attention_dropout = dropout
    args = BandGRPOConfig(
        output_dir=str(tmp_path), per_device_train_batch_size=4, generation_batch_size=8, num_generations=4,
        max_completion_length=4, max_steps=8, learning_rate=1e-5, logging_steps=1, save_strategy="no",
        **QUIET_ON_CPU,
    )  # fmt: skip
    records = []
    trainer = BandGRPOTrainer(
        model=model,
        reward_funcs=lambda completions, **_: [float(len(set(text))) for text in completions],
        args=args,
        train_dataset=Dataset.from_list([{"prompt": f"{i}+{i}="} for i in range(8)]),
        processing_class=tiny[1],
    )
    trainer.add_callback(Alarms(AlarmConfig(rollouts=3), Console(file=io.StringIO()), records.append))
    trainer.train()
    rows = [row for row in trainer.state.log_history if "band/ratio" in row]
    assert ["band/first_distance" in row for row in rows] == [True, False] * 4
    fired = [r for r in records if r["alarm"] == "first_update_moved"]
    assert bool(fired) == (dropout > 0)
    assert dropout == 0 or f"attention_dropout={dropout}" in fired[0]["advice"][0]


def test_groups_that_dynamic_sampling_replaced_do_not_count():
    sick = {**update(**SICK["zero_variance"]), "dynamic_sampling/uniform_after": 0.2}
    assert events([sick] * 6) == []


def test_rows_without_the_metric_are_passed_over():
    later = {k: v for k, v in update().items() if k not in ("reward", "frac_reward_zero_std")}
    sick = update(frac_reward_zero_std=1.0)
    assert events([sick, later, later, sick]) == [(4, "zero_variance", "fired")]
    assert events([{"entropy": None, "eval_entropy": 0.0, "train_runtime": 1.0}] * 9) == []


# --- the callback -------------------------------------------------------------------------------------------


class Stopped:
    should_training_stop = False


class State:
    def __init__(self, log_history=(), main=True):
        self.log_history = list(log_history)
        self.global_step = 0
        self.is_world_process_zero = main


def follow(rows, config, history=(), main=True):
    """(callback, text on the console, records, the control) after these log lines."""
    records, screen, control = [], io.StringIO(), Stopped()
    alarms = Alarms(config, Console(file=screen, width=200), records.append)
    state = State(history, main)
    alarms.on_train_begin(None, state, control)
    for step, row in enumerate(rows, len(history) + 1):
        state.global_step = step
        alarms.on_log(None, state, control, logs=row)
    return alarms, screen.getvalue(), records, control


@pytest.mark.parametrize("name", NAMES)
def test_says_what_it_means_and_what_to_try(name):
    alarm = next(a for a in ALARMS if a.name == name)
    _, text, records, control = follow([update()] * 4 + [update(**SICK[name])] * 6, CONFIG)
    assert len(records) == 1
    assert records[0]["alarm"] == name
    assert records[0]["event"] == "fired"
    assert records[0]["step"] == 6
    assert not records[0]["stops"]
    flat = " ".join(text.split())
    assert flat.startswith(f"alarm {name} fired at update 6")
    for words in (alarm.meaning, *alarm.advice):
        assert words in flat
    for value in records[0]["figures"].values():
        assert f"{value:.4g}" in flat
    assert not control.should_training_stop


def test_advice_names_settings_that_exist():
    known = {
        "train": set(BandGRPOConfig.__dataclass_fields__),
        "rule": {*Band.__dataclass_fields__, *Clip.__dataclass_fields__, "control"},
        "model": set(ModelConfig.model_fields),
    }
    named = re.findall(r"\b(train|rule|model)\.(\w+)", " ".join(" ".join(a.advice) for a in ALARMS))
    assert len(named) > 10
    for section, key in named:
        assert key in known[section]


@pytest.mark.parametrize(
    ("stop", "stops"), [(True, True), (False, False), (["zero_variance"], True), (["truncated"], False)]
)
def test_stops_the_run_where_told(stop, stops):
    config = AlarmConfig(window=2, rollouts=2, stop=stop)
    rows = [update(**SICK["zero_variance"])] * 3 + [update()] * 2
    alarms, text, records, control = follow(rows, config)
    assert control.should_training_stop is stops
    assert [r["event"] for r in records] == ["fired", "cleared"]
    assert not records[1]["stops"]
    assert ("The run stops here" in text) is stops
    assert records[0]["stops"] is stops
    assert (alarms.stopped_by.alarm if alarms.stopped_by else None) == ("zero_variance" if stops else None)


def test_other_processes_are_silent_but_stop_too():
    config = AlarmConfig(window=2, rollouts=2, stop=True)
    _, text, records, control = follow([update(**SICK["zero_variance"])] * 3, config, main=False)
    assert (text, records) == ("", [])
    assert control.should_training_stop


def test_a_resumed_run_neither_repeats_nor_forgets():
    sick = [update(**SICK["zero_variance"])] * 4
    history = [{"step": n, **row} for n, row in enumerate(sick, 1)]
    _, text, records, _ = follow(sick, CONFIG, history)
    assert (text, records) == ("", [])
    # the start of the run is that of the history
    history = [{"step": n, **update(entropy=2.0)} for n in range(1, 5)]
    _, _, records, _ = follow([update(entropy=0.09)] * 2, CONFIG, history)
    assert [r["alarm"] for r in records] == ["entropy_collapse"]


@pytest.mark.slow
def test_in_a_real_run(tmp_path, tiny):
    """All rewards equal: the alarm fires in the first run, stays quiet after the resume, and stops a third."""
    rows = Dataset.from_list([{"prompt": f"{i}+{i}="} for i in range(8)])

    def train(name, stop, steps, resume=None):
        records = []
        args = BandGRPOConfig(
            output_dir=str(tmp_path / name),
            per_device_train_batch_size=4,
            generation_batch_size=8,
            num_generations=4,
            max_completion_length=4,
            max_steps=steps,
            logging_steps=1,
            save_steps=4,
            report_to=[],
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            disable_tqdm=True,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer = BandGRPOTrainer(
                model=copy.deepcopy(tiny[0]),
                reward_funcs=lambda completions, **_: [1.0] * len(completions),
                args=args,
                train_dataset=rows,
                processing_class=tiny[1],
            )
            config = AlarmConfig(rollouts=2, stop=stop, truncated=2.0)
            trainer.add_callback(Alarms(config, Console(file=io.StringIO()), records.append))
            trainer.train(resume_from_checkpoint=resume)
        return trainer, [(r["step"], r["alarm"]) for r in records]

    trainer, found = train("a", False, 4)
    assert found == [(3, "zero_variance")]  # with the second rollout
    trainer, found = train("a", False, 8, resume=str(tmp_path / "a" / "checkpoint-4"))
    assert trainer.state.global_step == 8
    assert found == []
    trainer, found = train("b", ["zero_variance"], 8)
    assert found == [(3, "zero_variance")]
    assert trainer.state.global_step == 3


def test_the_recipe_reaches_the_limits():
    config = load_config("scratch", ["alarms.truncated=0.5", "alarms.stop=[truncated, zero_variance]"])
    assert config.alarms.truncated == 0.5
    assert config.alarms.stops("truncated")
    assert not config.alarms.stops("cap_binds")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("alarms.stop=[zero_varance]", ["'zero_varance'", "did you mean 'zero_variance'"]),
        ("alarms.stop=zero_variance", ["'zero_variance'", "list"]),
        ("alarms.windw=3", ["'alarms.windw'", "did you mean 'window'"]),
        ("alarms.window=0", ["alarms.window", "0"]),
        ("alarms.entropy_low=-1", ["alarms.entropy_low", "-1"]),
    ],
)
def test_mistakes_are_named(override, words):
    with pytest.raises(ValueError) as caught:
        load_config("scratch", [override])
    for word in words:
        assert word in str(caught.value)
