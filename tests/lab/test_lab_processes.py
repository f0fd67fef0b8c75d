"""TRL's own losses through a recipe, shared initial weights, and what is collected of a real run."""

import json
import math

import pytest
from rich.console import Console
from safetensors.torch import load_file

from bandpo.lab.collect import collect_run
from bandpo.lab.initial import make_initial
from bandpo.lab.metrics import FinishedRun
from bandpo.lab.scores import final_score
from bandpo.report.run_page import read_run
from bandpo.runs.build import (
    RecipeTrainer,
    build_args,
    build_model,
    build_trainer,
)
from bandpo.runs.config import load_config
from bandpo.runs.job import run_training
from bandpo.runs.run_dir import RunDirectory
from bandpo.runs.train_settings import check_train_settings, config_class
from bandpo.training.durable import Durable
from helpers import TINY

pytestmark = pytest.mark.slow

FAST = ["warmup.steps=5", "train.learning_rate=1e-2", "train.warmup_steps=0", "train.report_to=[]"]
LOSSES = {
    "cispo": {"loss_type": "cispo", "epsilon_high": 5.0},
    "gspo": {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 3e-4},
    "sapo": {"loss_type": "sapo"},
}


def recipe(*overrides):
    return load_config("scratch", [*TINY, *FAST, *overrides])


def trl(settings):
    return recipe("rule.name=trl", *(f"train.{key}={value}" for key, value in settings.items()))


@pytest.fixture(scope="module")
def initial(tmp_path_factory):
    target = tmp_path_factory.mktemp("initial") / "0"
    make_initial(recipe(), target)
    return target


def test_initial_weights_are_those_of_the_seed(initial, tmp_path):
    make_initial(recipe(), tmp_path / "again")
    make_initial(recipe("seed=1"), tmp_path / "other")
    first, again, other = (
        load_file(folder / "model.safetensors") for folder in (initial, tmp_path / "again", tmp_path / "other")
    )
    assert all(first[name].equal(again[name]) for name in first)
    assert not all(first[name].equal(other[name]) for name in first)
    raw = build_model(recipe())[0].state_dict()
    assert not all(first[name].equal(raw[name]) for name in first), "no warm-up"


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_of_trls_reaches_trls_trainer_untouched(name, tmp_path):
    config = trl(LOSSES[name])
    args = build_args(config, check_train_settings(config.train, config_class(config)), RunDirectory(tmp_path))
    for key, value in LOSSES[name].items():
        assert getattr(args, key) == value
    trainer = build_trainer(config, args, *build_model(config), config.task.problems()[0])
    assert type(trainer) is Durable
    ours = recipe()
    args = build_args(ours, check_train_settings(ours.train, config_class(ours)), RunDirectory(tmp_path))
    assert type(build_trainer(ours, args, *build_model(ours), ours.task.problems()[0])) is RecipeTrainer


def test_settings_that_have_no_meaning_there_are_refused():
    for key in ("band_radius", "clip_rule", "dynamic_sampling"):
        with pytest.raises(ValueError, match=f"unknown key 'train.{key}'"):
            recipe("rule.name=trl", f"train.{key}=1")
    with pytest.raises(ValueError, match=r"train.epsilon is set by rule.low"):
        check_train_settings({"epsilon": 0.1})
    with pytest.raises(ValueError, match=r"train.seed is set by seed"):
        check_train_settings({"seed": 1}, config_class(recipe("rule.name=trl")))


@pytest.mark.parametrize("rule", ["trl", "band"])
def test_what_is_collected_of_a_run(initial, tmp_path, rule):
    overrides = {"trl": ["rule.name=trl", "train.loss_type=cispo"], "band": ["rule.radius=0.05"]}[rule]
    config = recipe("model.scratch=null", f"model.path={initial}", "warmup=null", *overrides)
    run_training(config, tmp_path / "run", Console(quiet=True))
    record = collect_run(tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert record.rollouts.step == [1]
    assert record.rollouts.reward[0] == pytest.approx(rows[0]["reward"], rel=1e-3)
    assert record.rollouts.tokens[0] == rows[0]["num_tokens"]
    assert record.updates.step == [1, 2, 3, 4]
    assert record.updates.entropy == pytest.approx([row["entropy"] for row in rows], rel=1e-3)
    assert record.updates.seconds[-1] == pytest.approx(sum(row["step_time"] for row in rows), rel=1e-3)
    assert all(math.isfinite(value) for value in record.updates.clip_fraction_high)
    page = read_run(tmp_path / "run")
    for name in ("entropy", "clip_fraction_high", "ratio_max"):
        points = [(i, value) for i, value in enumerate(getattr(record.updates, name), 1) if value is not None]
        assert bool(points) == (name != "ratio_max" or rule == "band")
        assert page.series[name] == [(i, pytest.approx(value, rel=1e-3)) for i, value in points]
    finished = FinishedRun(method=rule, point={}, seed=0, status="finished", **vars(record))
    after = json.loads((tmp_path / "run" / "eval" / "after" / "result.json").read_text())
    assert final_score(finished, "mean") == pytest.approx(after["metrics"]["mean@2"]["mean"])
    assert final_score(finished, "pass@2") == pytest.approx(after["metrics"]["pass@2"]["mean"])
    assert final_score(finished, "greedy") == pytest.approx(after["metrics"]["greedy"]["mean"])
    with_bounds = rule == "band"
    assert any("band/divergence" in row for row in rows) == with_bounds
    assert (record.updates.divergence == [None] * 4) != with_bounds
