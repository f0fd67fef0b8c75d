"""Recipes: what they inherit, the batches they make, and the commands that start them."""

import pytest

from bandpo.training.config import load_config, read_recipe


def write(folder, **recipes):
    for name, text in recipes.items():
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    return str(folder / f"{next(reversed(recipes))}.yaml")


def test_a_recipe_holds_only_what_differs(tmp_path):
    path = write(
        tmp_path,
        root="model: {path: a, dtype: float16}\nlora: {rank: 4, targets: [x, y]}\ntrain: {max_steps: 1, top_k: 3}",
        middle="base: root.yaml\ntrain: {max_steps: 2}\nlora: {targets: [z]}",
        leaf="base: middle.yaml\nmodel: {path: b}\ntrain: {top_p: 0.5}",
    )
    assert read_recipe(path) == {
        "model": {"path": "b", "dtype": "float16"},
        "lora": {"rank": 4, "targets": ["z"]},
        "train": {"max_steps": 2, "top_k": 3, "top_p": 0.5},
    }


def test_null_removes_what_was_inherited(tmp_path):
    path = write(tmp_path, mine="base: quickstart\nlora: null")
    assert load_config(path).lora is None
    assert load_config(path).train == load_config("quickstart").train


def test_another_rule_inherits_no_options(tmp_path):
    path = write(tmp_path, mine="base: quickstart\nrule: {name: clip, high: 0.28}")
    assert read_recipe(path)["rule"] == {"name": "clip", "high": 0.28}
    path = write(tmp_path, mine="base: quickstart\nrule: {radius: 0.1}")
    assert read_recipe(path)["rule"] == {"name": "band", "radius": 0.1, "divergence": "kl"}


@pytest.mark.parametrize(
    ("recipes", "words"),
    [
        ({"a": "base: a.yaml"}, ["a.yaml", "inherits from itself"]),
        ({"a": "base: b.yaml", "b": "base: c.yaml", "c": "base: a.yaml"}, ["inherits from itself", "a.yaml <- "]),
        ({"a": "base: quikstart"}, ["'quikstart'", "did you mean 'quickstart'"]),
        ({"a": "base: b.yaml"}, ["b.yaml", "does not exist"]),
        ({"a": "base: [quickstart]"}, ["['quickstart']", "allowed is a recipe's name"]),
    ],
)
def test_mistakes_in_inheritance_are_named(tmp_path, recipes, words):
    path = write(tmp_path, **recipes)
    with pytest.raises(ValueError) as caught:
        read_recipe(path)
    for word in words:
        assert word in str(caught.value)
