"""Shaping rewards: what they give, and that training adds them to the task's reward."""

import math

import pytest

from bandpo.runs.build import build_args, build_trainer
from bandpo.runs.config import validate_config
from bandpo.runs.run_dir import RunDirectory
from bandpo.runs.train_settings import check_train_settings
from bandpo.tasks import REWARDS, make_shaping

RECIPE = {"model": {"scratch": {}}, "task": {"name": "arithmetic"}}


def values(name, texts=(), ids=(), limit=100, **options):
    return make_shaping(limit, name, **options).function(list(texts), list(ids))


def test_formats():
    assert values("boxed", ["so \\boxed{3}", "\\boxed{}", "\\boxed{3", "3"]) == [1.0, 0.0, 0.0, 0.0]
    assert values("format", ["<think>\na\n</think>\nb", "<think>a", "b"]) == [1.0, 0.0, 0.0]


def test_format_knows_thoughts_that_the_prompt_opened():
    texts = ["a\n</think>\nb", "a</think>b<think>", "a", "</think>", "<think>a<think>b</think>c"]
    assert values("format", texts) == [1.0, 0.0, 0.0, 1.0, 0.0]


def test_overlong_falls_over_the_buffer():
    """0 up to the limit less the buffer, -1 at the limit, linear in between (DAPO, eq. 13)."""
    lengths = (0, 60, 70, 80, 100, 101)
    expected = [0.0, 0.0, -0.25, -0.5, -1.0, -1.0]
    assert values("overlong", ids=[[7] * n for n in lengths], buffer=40) == pytest.approx(expected)


def test_repetition_counts_repeated_ngrams():
    # 1 2 1 2 1 has the pairs 12, 21, 12, 21: half are repeated.
    assert values("repetition", ids=[[1, 2, 1, 2, 1], [1, 2, 3], [1]], ngram_size=2) == [-0.5, 0.0, 0.0]
    assert values("repetition", ids=[[1] * 5], ngram_size=1, max_penalty=-2.0) == pytest.approx([-1.6])


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "my_shaping.py").write_text(
        "def length(text, scale=1): return scale * len(text)\ndef broken(text): return float('nan')\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(tmp_path)


def test_own_functions(own):
    assert values("my_shaping:length", ["ab", ""], scale=3) == [6.0, 0.0]
    with pytest.raises(ValueError, match="'my_shaping:broken' returned nan"):
        values("my_shaping:broken", ["a"])


@pytest.mark.parametrize(
    ("shaping", "words"),
    [
        ([{"name": "overlng"}], ["'overlng'", "did you mean 'overlong'"]),
        ([{"weight": 1}], ["shaping.0 has no name"]),
        ([{"name": "overlong", "bufer": 3}], ["'bufer'", "did you mean 'buffer'"]),
        ([{"name": "overlong", "buffer": 0}], ["buffer is 0"]),
        ([{"name": "overlong", "buffer": 2.5}], ["buffer is 2.5; allowed: an integer"]),
        ([{"name": "overlong", "buffer": 64}], ["buffer is 64", "train.max_completion_length, which is 64"]),
        ([{"name": "boxed", "weight": 0}], ["weight is 0"]),
        ([{"name": "boxed", "weight": math.inf}], ["weight is inf"]),
        ([{"name": "boxed", "weight": "a"}], ["weight is 'a'"]),
        ([{"name": "repetition", "max_penalty": 1.0}], ["max_penalty is 1.0"]),
        ([{"name": "repetition", "ngram_size": 0}], ["ngram_size is 0"]),
        ([{"name": "math:nothing_there"}], ["shaping 'math:nothing_there'", "has no 'nothing_there'"]),
        ("boxed", ["shaping is 'boxed'"]),
    ],
)
def test_mistakes_are_named(shaping, words):
    with pytest.raises(ValueError) as caught:
        validate_config({**RECIPE, "shaping": shaping, "train": {"max_completion_length": 64}})
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_weights_are_set_by_the_section():
    with pytest.raises(ValueError, match=r"train\.reward_weights is set by shaping"):
        check_train_settings({"reward_weights": [1.0]})


@pytest.mark.slow
def test_training_adds_them_to_the_reward(tmp_path, tiny, monkeypatch):
    monkeypatch.setitem(REWARDS, "one", lambda completion, answer: 1.0)
    config = validate_config(
        {
            **RECIPE,
            "task": {"name": "arithmetic", "high": 5, "heldout": 5, "reward": "one"},
            "shaping": [{"name": "overlong", "buffer": 6, "weight": 0.5}, {"name": "boxed"}],
            "train": {
                "max_steps": 1,
                "num_iterations": 2,
                "max_completion_length": 8,
                "num_generations": 4,
                "generation_batch_size": 8,
                "per_device_train_batch_size": 8,
                "report_to": [],
            },
        }
    )
    run = RunDirectory.create(tmp_path / "run", {}, [])
    trainer = build_trainer(config, build_args(config, config.train, run), *tiny, config.task.problems()[0])
    trainer.train()
    log = next(line for line in trainer.state.log_history if "reward" in line)
    parts = [log[f"rewards/{name}/mean"] for name in ("one", "shaping_overlong", "shaping_boxed")]
    assert parts[0] == 1
    assert parts[1] < 0
    assert log["reward"] == pytest.approx(parts[0] + 0.5 * parts[1] + parts[2], abs=1e-6)
