"""Recipes, overrides and what they say of mistakes."""

import tomllib
from pathlib import Path

import pytest

from bandpo import Band, Clip
from bandpo.runs.build import check_train_settings
from bandpo.runs.config import load_config, recipe_names

DATA = {"word-problems": ["task.data=problems.jsonl"]}


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_is_valid(name):
    config = load_config(name, DATA.get(name))
    assert config.description
    check_train_settings(config.train)
    assert config.rule.clip_rule is not None


def test_recipes_are_part_of_the_package():
    root = Path(__file__).parents[2]
    patterns = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["bandpo"]
    packaged = {path for pattern in patterns for path in (root / "src/bandpo").glob(pattern)}
    assert packaged >= set((root / "src/bandpo/recipes").rglob("*.yaml"))
    assert {path.stem for path in packaged if path.match("recipes/*.yaml")} == set(recipe_names())


def test_overrides_are_yaml():
    config = load_config(
        "quickstart",
        ["rule.radius=[0.02, 0.2]", "train.learning_rate=3e-4", "lora=null", "task.operations=['+', '*']", "seed=7"],
    )
    assert config.rule.clip_rule == Band((0.02, 0.2))
    assert config.train["learning_rate"] == 3e-4
    assert config.lora is None
    assert config.task.operations == ("+", "*")
    assert config.seed == 7


def test_another_rule_starts_from_its_own_defaults():
    config = load_config("quickstart", ["rule.high=0.28", "rule.name=clip"])
    assert config.rule.clip_rule == Clip(0.2, 0.28)
    assert load_config("quickstart", ["rule.name=band"]).rule.clip_rule == load_config("quickstart").rule.clip_rule


def test_recipe_from_a_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("model: {path: x}\ntask: {name: arithmetic}\ntrain: {learning_rate: 3e-4}\n", encoding="utf-8")
    assert load_config(str(path)).train["learning_rate"] == 3e-4


@pytest.mark.parametrize(
    ("recipe", "overrides", "words"),
    [
        ("quickstrat", [], ["'quickstrat'", "did you mean 'quickstart'"]),
        ("missing.yaml", [], ["'missing.yaml'", "does not exist"]),
        ("quickstart", ["taks.low=1"], ["'taks'", "did you mean 'task'"]),
        ("quickstart", ["task.lwo=1"], ["'task.lwo'", "did you mean 'low'"]),
        ("quickstart", ["task.name=arithmetik"], ["'arithmetik'", "did you mean 'arithmetic'"]),
        ("quickstart", ["rule.name=bend"], ["'bend'", "did you mean 'band'"]),
        ("quickstart", ["rule.radios=1"], ["'radios'", "did you mean 'radius'"]),
        ("quickstart", ["rule.radius=0"], ["radius", "0"]),
        ("quickstart", ["rule.divergence=tvv"], ["'tvv'", "'tv'"]),
        ("quickstart", ["task.low=a"], ["task.low", "'a'", "integer"]),
        ("quickstart", ["lora.rank=0"], ["lora.rank", "0"]),
        ("quickstart", ["model.path=null"], ["model.path", "model.scratch"]),
        ("quickstart", ["train.max_step=3"], ["'train.max_step'", "did you mean 'max_steps'"]),
        ("quickstart", ["train.epsilon=0.1"], ["train.epsilon", "rule.low"]),
        ("quickstart", ["just-a-word"], ["'just-a-word'", "key=value"]),
        ("word-problems", [], ["'task.data' is missing", "task.data=VALUE"]),
    ],
)
def test_mistakes_are_named(recipe, overrides, words):
    with pytest.raises(ValueError) as caught:
        check_train_settings(load_config(recipe, overrides).train)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)
