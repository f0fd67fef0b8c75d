"""`bandpo eval --backend vllm`: the statistics of transformers, an evaluation that resumes, errors in a sentence."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import replace

import pytest

from bandpo.evaluation import Sampling, evaluate_into
from bandpo.evaluation.backends import choose_backend
from bandpo.tasks import benchmark

PROMPTS, SAMPLES = 120, 8


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    """Questions whose answer is a digit: a model with random weights hits it now and then."""
    path = tmp_path_factory.mktemp("data") / "digits.jsonl"
    rows = [{"question": f"{i} and {i * i}?", "answer": str(i % 10)} for i in range(PROMPTS)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def data(questions):
    return benchmark(str(questions), template="plain", reward="last_integer")


SETTINGS = Sampling(samples=SAMPLES, max_new_tokens=24, seed=0, batch_size=64)


def by_engine(directory, data, engine, sampling=SETTINGS, **options):
    backend, *loaded = engine
    return evaluate_into(
        directory, *loaded, *data, sampling, identity=backend.identity, sampler=backend.sample, **options
    )


def test_statistics_are_those_of_transformers_within_sampling_error(tmp_path, data, engine, exact):
    ours = by_engine(tmp_path / "vllm", data, engine).result
    theirs = evaluate_into(tmp_path / "transformers", *exact, *data, SETTINGS, identity={}).result
    for name in (f"mean@{SAMPLES}", "length", "truncated", "entropy"):
        one, other = ours.metrics[name], theirs.metrics[name]
        spread = math.hypot(one.high - one.low, other.high - other.low) / (2 * 1.96)
        assert abs(one.mean - other.mean) < 3.5 * spread, name
    assert 0.01 < ours.success.mean < 0.99


class StopError(Exception):
    pass


def test_an_interrupted_evaluation_resumes_to_the_same_end(tmp_path, data, engine):
    whole = by_engine(tmp_path / "whole", data, engine)
    done = 0

    def stop(n):
        nonlocal done
        done += n
        if done > PROMPTS * SAMPLES // 2:
            raise StopError

    with pytest.raises(StopError):
        by_engine(tmp_path / "cut", data, engine, progress=stop)
    assert by_engine(tmp_path / "cut", data, engine) == whole
    other = by_engine(tmp_path / "other", data, engine, replace(SETTINGS, seed=1))
    assert other != whole


def test_the_command_runs_at_its_default_batch_size(tmp_path, model_path, questions):
    command = [sys.executable, "-m", "bandpo", "eval", str(model_path), str(questions), "--backend", "vllm"]
    options = ["--samples", "2", "--max-new-tokens", "8", "--output", str(tmp_path / "out"), "--greedy"]
    # As a user runs it: the engine in a process of its own.
    environment = {key: value for key, value in os.environ.items() if key != "VLLM_ENABLE_V1_MULTIPROCESSING"}
    done = subprocess.run(
        [*command, *options], capture_output=True, text=True, check=False, timeout=600, env=environment
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "out" / "digits" / "result.json").read_text())
    assert (result["backend"], result["batch_size"], result["prompts"]) == ("vllm", 1024, PROMPTS)


def test_a_model_that_vllm_cannot_load_is_one_sentence(tmp_path, model_path):
    config = json.loads((model_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(
        json.dumps({**config, "architectures": ["NoSuchModel"], "model_type": "no"})
    )
    with pytest.raises(ValueError, match=r"vLLM cannot start with .*choose --backend transformers"):
        choose_backend("vllm", str(tmp_path)).load(str(tmp_path), "float32", 0)
