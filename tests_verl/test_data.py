"""Parquet files that verl's own data set reads, and the reward that its own manager calls."""

from __future__ import annotations

import json

import pytest
from omegaconf import OmegaConf
from verl.trainer.ppo.reward import get_custom_reward_fn
from verl.utils.dataset.rl_dataset import RLHFDataset

from bandpo.integrations.verl_data import read_problems, verl_rows, write_parquet


def test_verls_data_set_reads_what_is_written(tmp_path, model_path):
    from transformers import AutoTokenizer

    source = tmp_path / "problems.jsonl"
    rows = [{"question": f"w{n} plus w2", "answer": str(n + 2)} for n in range(5)]
    source.write_text("\n".join(map(json.dumps, rows)))
    path = tmp_path / "out" / "math.parquet"
    write_parquet(verl_rows(read_problems("math", str(source)), "math", "boxed"), path)
    assert [p.name for p in path.parent.iterdir()] == ["math.parquet"]
    tokenizer = AutoTokenizer.from_pretrained(model_path)
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    config = OmegaConf.create({"max_prompt_length": 512, "cache_dir": str(tmp_path), "return_raw_chat": True})
    dataset = RLHFDataset([str(path)], tokenizer, config)
    assert len(dataset) == 5
    row = dataset[3]
    assert row["data_source"] == "math"
    assert row["reward_model"] == {"style": "rule", "ground_truth": "5"}
    (message,) = row["raw_prompt"]
    assert message["role"] == "user"
    assert message["content"].startswith("w3 plus w2\n")
    assert "\\boxed{}" in message["content"]


def test_the_reward_is_loaded_and_grades_as_the_recipes_name_it():
    function = {"path": "pkg://bandpo.integrations.verl_reward", "name": "compute_score"}
    reward = get_custom_reward_fn(OmegaConf.create({"reward": {"custom_reward_function": function}}))
    for text, score in [
        ("so \\boxed{\\frac{1}{2}}", 1.0),
        ("so \\boxed{0.5}", 1.0),
        ("so \\boxed{2}", 0.0),
        ("?", 0.0),
    ]:
        assert reward(data_source="math", solution_str=text, ground_truth="\\frac{1}{2}", extra_info={}) == score


def test_levels_are_kept_where_the_columns_are_the_hubs(tmp_path):
    source = tmp_path / "math.jsonl"
    rows = [{"problem": f"p{n}", "solution": f"\\boxed{{{n}}}", "level": f"Level {n}"} for n in range(1, 6)]
    source.write_text("\n".join(map(json.dumps, rows)))
    assert [p.answer for p in read_problems("math", str(source), hub_columns=True)] == ["3", "4", "5"]


def test_an_unknown_data_set_is_one_sentence():
    with pytest.raises(ValueError, match="unknown data set 'mth'"):
        read_problems("mth")
