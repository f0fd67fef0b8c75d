"""bandpo eval and bandpo samples."""

import json
import shutil
import subprocess
import sys
import time
from types import ModuleType, SimpleNamespace
from typing import ClassVar

import pytest
import torch

from bandpo.evaluation.backends import choose_backend, sample_vllm
from bandpo.evaluation.identity import fingerprint
from bandpo.evaluation.sampling import Sampling, encode
from bandpo.evaluation.store import read_grades
from bandpo.models import scratch_model


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny"
    for part in scratch_model(hidden_size=32, layers=2, heads=2, positions=128, seed=0):
        part.save_pretrained(folder)
    return folder


SMALL = ("--samples", "2", "--max-new-tokens", "4", "--limit", "3", "--output", "out")


@pytest.mark.slow
def test_two_data_sets_of_one_name(bandpo, tmp_path, model_path, questions):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        shutil.copy(questions, tmp_path / folder / "test.jsonl")
    arguments = ("eval", model_path, "a/test.jsonl", "b/test.jsonl", *SMALL, "--greedy", "--top-p", "0.9")
    printed = bandpo(*arguments)
    for words in ("a-test (3)", "b-test (3)", "mean@2", "maj@2", "success, greedy"):
        assert words in printed
    assert "not graded in time" not in printed
    (row,) = (line for line in printed.splitlines() if "mean@2" in line)
    assert row.count("[") == 2, "an interval a data set"
    names = ("settings.json", "samples.jsonl", "greedy.jsonl", "result.json")
    first, second = ({n: (tmp_path / "out" / f / n).read_bytes() for n in names} for f in ("a-test", "b-test"))
    assert first["samples.jsonl"] == second["samples.jsonl"], "the same problems and seed give the same bytes"
    result = json.loads(first["result.json"])
    expected = {
        "model": str(model_path), "weights": fingerprint(model_path), "dtype": "float32",
        "backend": "transformers", "entropy_from": "distribution",
        "prompts": 3, "samples": 2, "max_new_tokens": 4, "temperature": 1.0, "top_p": 0.9, "greedy": True,
        "batch_size": 64, "seed": 0, "timeouts": 0,
    }  # fmt: skip
    assert {key: result[key] for key in expected} == expected
    assert result["task"]["template"] == "plain"
    assert bandpo(*arguments) == printed, "a finished evaluation is read back"
    assert {n: (tmp_path / "out" / "a-test" / n).read_bytes() for n in names} == first
    with pytest.raises(ValueError, match="another seed"):
        bandpo(*arguments, "--seed", "1")
    with pytest.raises(ValueError, match="another top_p"):
        bandpo("eval", model_path, "a/test.jsonl", "b/test.jsonl", *SMALL, "--greedy")


def test_a_data_set_by_name(bandpo, tmp_path, model_path, monkeypatch):
    rows = [{"question": "Two and two?", "answer": "It is 4.\n#### 1,004"}]
    loaded = []

    def load_dataset(*arguments, **settings):
        loaded.append((arguments, settings))
        return rows

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    bandpo("eval", model_path, "gsm8k", *SMALL)
    assert loaded == [(("openai/gsm8k", "main"), {"split": "test"})]
    result = json.loads((tmp_path / "out" / "gsm8k" / "result.json").read_text())
    assert result["task"]["template"] == "boxed"
    (grade,) = read_grades(tmp_path / "out" / "gsm8k" / "samples.jsonl")
    assert grade.problem.answer == "1004"
    bandpo("eval", model_path, "gsm8k", *SMALL[:-1], "other", "--template", "plain", "--split", "train")
    assert loaded[1][1] == {"split": "train"}
    assert json.loads((tmp_path / "other" / "gsm8k" / "result.json").read_text())["task"]["template"] == "plain"


@pytest.mark.slow
def test_an_adapter_is_evaluated_with_its_base(bandpo, tmp_path, model_path, questions):
    from peft import LoraConfig, get_peft_model

    from bandpo.models import load_model

    base, tokenizer = load_model(str(model_path))
    torch.manual_seed(0)
    adapter = get_peft_model(base, LoraConfig(target_modules="all-linear", init_lora_weights=False))
    adapter.save_pretrained(tmp_path / "run" / "model")
    tokenizer.save_pretrained(tmp_path / "run" / "model")
    (tmp_path / "run" / "config.yaml").write_text("")
    bandpo("eval", "run", questions, *SMALL, "--temperature", "0", "--samples", "1")
    (tmp_path / "out" / "questions").rename(tmp_path / "adapted")
    grades = list(read_grades(tmp_path / "adapted" / "samples.jsonl"))
    ids = encode(grades[0].problem.question, tokenizer)
    with torch.no_grad():
        for _ in range(4):
            ids.append(adapter(torch.tensor([ids])).logits[0, -1].argmax().item())
    assert grades[0].completions[0].text == tokenizer.decode(ids[-4:], skip_special_tokens=True)


class FakeLLM:
    """The part of vLLM that is used, after its documentation; keeps what it was called with."""

    calls: ClassVar[list] = []

    def __init__(self, **settings):
        self.calls.append(("LLM", settings))

    def get_tokenizer(self):
        return scratch_model(hidden_size=8, layers=1, heads=1, positions=16, seed=0)[1]

    def generate(self, prompts, parameters, *, use_tqdm):
        assert use_tqdm is False
        self.calls.append(("generate", prompts, [vars(p) for p in parameters]))
        for prompt, parameter in zip(prompts, parameters, strict=True):
            outputs = [
                SimpleNamespace(
                    index=i,
                    text=f"{len(prompt['prompt_token_ids'])}",
                    token_ids=[5] * (i + 1),
                    cumulative_logprob=None if parameter.logprobs is None else -0.5 * (i + 1) ** 2,
                    finish_reason="length" if i else "stop",
                )
                for i in range(parameter.n)
            ]
            yield SimpleNamespace(outputs=outputs[::-1])


@pytest.fixture
def fake_vllm(monkeypatch):
    module = ModuleType("vllm")
    module.LLM, module.SamplingParams = FakeLLM, SimpleNamespace
    module.__spec__ = SimpleNamespace()
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setattr(FakeLLM, "calls", [])


def test_vllm_gets_exactly_these_arguments(bandpo, tmp_path, model_path, questions, fake_vllm):
    chosen = ("--backend", "vllm", "--limit", "2", "--dtype", "bfloat16", "--seed", "7", "--greedy")
    bandpo("eval", model_path, questions, *SMALL, *chosen)
    (_, loaded), (_, prompts, sampling), (_, _, best) = FakeLLM.calls
    on_cpu = {"enable_chunked_prefill": False}
    assert loaded == {"model": str(model_path), "dtype": "bfloat16", "seed": 7, **on_cpu}
    text = "Ann has 0 nuts and finds 2. How many now?"
    tokenizer = scratch_model(hidden_size=8, layers=1, heads=1, positions=16, seed=0)[1]
    assert prompts[0] == {"prompt_token_ids": tokenizer(text)["input_ids"]}
    fixed = {"n": 2, "temperature": 1.0, "top_p": 1.0, "top_k": -1, "max_tokens": 4, "logprobs": 0}
    assert [{k: v for k, v in one.items() if k != "seed"} for one in sampling] == [fixed, fixed]
    seeds = [one["seed"] for one in sampling]
    assert len(set(seeds)) == 2
    assert all(type(seed) is int for seed in seeds)
    assert best[0] == {**fixed, "n": 1, "temperature": 0.0, "logprobs": None, "seed": best[0]["seed"]}
    grades = list(read_grades(tmp_path / "out" / "questions" / "samples.jsonl"))
    first, second = grades[0].completions
    assert (first.text, first.tokens, first.truncated, first.entropy) == (str(len(text)), 1, False, 0.5)
    assert (second.tokens, second.truncated, second.entropy) == (2, True, 1.0)
    result = json.loads((tmp_path / "out" / "questions" / "result.json").read_text())
    assert (result["backend"], result["entropy_from"], result["batch_size"]) == ("vllm", "sampled tokens", 1024)
    assert result["metrics"]["entropy"]["mean"] == 0.75


@pytest.mark.parametrize("changes", [{"temperature": 0.6}, {"top_p": 0.95}, {"temperature": 0.0}])
def test_vllm_entropy_is_left_out_where_it_would_be_biased(fake_vllm, changes):
    engine = FakeLLM()
    sampling = Sampling(samples=2, max_new_tokens=4, seed=3, **changes)
    drawn = sample_vllm(engine, engine.get_tokenizer(), ["ab", "c"], sampling)
    assert [[c.entropy for c in completions] for completions in drawn] == [[None, None]] * 2
    assert FakeLLM.calls[-1][2][0]["logprobs"] is None


def test_vllm_is_chosen_if_it_is_faster_and_can_load_the_model(fake_vllm, tmp_path, monkeypatch):
    assert choose_backend("auto", "x").name == "transformers"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_backend("auto", "x").name == "vllm"
    choose_backend("auto", "x").load("x", "auto", 0)
    assert "enable_chunked_prefill" not in FakeLLM.calls[0][1]
    (tmp_path / "adapter_config.json").write_text("{}")
    assert choose_backend("auto", str(tmp_path)).name == "transformers"
    with pytest.raises(ValueError, match="an adapter, which backend 'vllm' does not load"):
        choose_backend("vllm", str(tmp_path))


def test_backends():
    assert choose_backend("auto", "x").name == "transformers"
    assert choose_backend("transformers", "x").name == "transformers"
    with pytest.raises(ValueError, match="'vllm' is not installed"):
        choose_backend("vllm", "x")
    with pytest.raises(ValueError, match="did you mean 'vllm'"):
        choose_backend("vlm", "x")


COMMAND = [sys.executable, "-c", "from bandpo.cli import main; main()"]


@pytest.mark.slow
def test_a_killed_evaluation_ends_as_one_that_was_not(bandpo, tmp_path, model_path, questions):
    arguments = ("--samples", "2", "--max-new-tokens", "24", "--batch-size", "2", "--greedy")
    bandpo("eval", model_path, questions, *arguments, "--output", "whole")
    log = tmp_path / "cut" / "questions" / "samples.jsonl"
    process = subprocess.Popen(
        [*COMMAND, "eval", str(model_path), str(questions), *arguments, "--output", "cut"],
        cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    while not log.exists() or log.read_bytes().count(b"\n") < 2:
        assert process.poll() is None, process.stderr.read().decode()
        time.sleep(0.002)
    process.kill()
    process.communicate()
    assert log.read_bytes().count(b"\n") < 20, "it was interrupted"
    bandpo("eval", model_path, questions, *arguments, "--output", "cut")
    for name in ("settings.json", "samples.jsonl", "greedy.jsonl", "result.json"):
        whole, cut = (tmp_path / folder / "questions" / name for folder in ("whole", "cut"))
        assert cut.read_bytes() == whole.read_bytes(), name


@pytest.mark.slow
def test_evaluating_does_without_trl(tmp_path, model_path, questions):
    code = (
        "import sys; from bandpo.cli.app import app; app(args=sys.argv[1:], standalone_mode=False);"
        "sys.exit('trl' in sys.modules)"
    )
    arguments = [str(model_path), str(questions), *SMALL, "--limit", "1"]
    subprocess.run([sys.executable, "-c", code, "eval", *arguments], cwd=tmp_path, check=True, capture_output=True)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["./nowhere", "nowhere.jsonl"], ["'nowhere.jsonl' does not exist"]),
        (["./nowhere", "QUESTIONS"], ["'./nowhere' does not exist"]),
        (["m", "QUESTIONS", "QUESTIONS"], ["given twice"]),
        (["m", "QUESTIONS", "--dtype", "float8"], ["'float8'", "bfloat16"]),
        (["m", "QUESTIONS", "--template", "x"], ["{question}"]),
        (["m", "QUESTIONS", "--template", "boxd"], ["did you mean 'boxed'"]),
        (["m", "QUESTIONS", "--reward", "maths"], ["did you mean 'math'"]),
        (["m", "QUESTIONS", "--columns", "gsm9k"], ["did you mean 'gsm8k'"]),
        (["m", "QUESTIONS", "--answer-key", "reply"], ["'reply'", "'question', 'answer'"]),
        (["m", "QUESTIONS", "--top-p", "0"], ["top_p is 0"]),
        (["m", "QUESTIONS", "--temperature", "0"], ["--samples 1", "--greedy"]),
        (["m", "QUESTIONS", "--backend", "sglang"], ["'sglang'", "transformers, vllm"]),
        (["m", "QUESTIONS", "--checkpoint", "3"], ["not a run directory"]),
    ],
)
def test_mistakes_of_eval_leave_nothing(bandpo, tmp_path, questions, arguments, words):
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ValueError) as caught:
        bandpo("eval", *(questions if a == "QUESTIONS" else a for a in arguments))
    for word in words:
        assert word in str(caught.value)
    assert sorted(tmp_path.iterdir()) == before


def test_completions_that_cannot_fit_are_refused_before_anything_is_written(bandpo, tmp_path, model_path, questions):
    prompt = len("Ann has 19 nuts and finds 2. How many now?")  # a token per character
    fits = 128 - prompt
    with pytest.raises(ValueError, match=f"has {prompt} tokens.*--max-new-tokens {fits} or less") as caught:
        bandpo("eval", model_path, questions, *SMALL[:2], "--max-new-tokens", fits + 1)
    assert f"--max-new-tokens is {fits + 1}, together 129, but the model has 128 positions" in str(caught.value)
    assert "too few for 10 of 20 prompts" in str(caught.value)
    assert sorted(tmp_path.iterdir()) == [questions]


def completion(text, reward, truncated=False, tokens=3):
    return {
        "text": text, "tokens": tokens, "truncated": truncated, "entropy": 1.0,
        "reward": reward, "timed_out": False, "final": None,
    }  # fmt: skip


@pytest.fixture
def evaluated(tmp_path):
    """Two evaluations, as bandpo eval leaves them, of two problems each."""
    for name in ("gsm8k", "math"):
        folder = tmp_path / "scores" / name
        folder.mkdir(parents=True)
        (folder / "settings.json").write_text("{}")
        rows = [
            [completion(f"{name} [/bold] one", 1.0), completion(f"{name} two", 0.0, truncated=True)],
            [completion(f"{name} three", 0.0), completion(f"{name} four", 1.0, truncated=True)],
        ]
        lines = [
            json.dumps({"question": f"q{i} of {name}", "answer": "7", "origin": "", "completions": row})
            for i, row in enumerate(rows, 1)
        ]
        (folder / "samples.jsonl").write_text("\n".join(lines) + "\n")
        (folder / "greedy.jsonl").write_text(lines[0].replace("one", "best") + "\n")
    return tmp_path / "scores"


@pytest.mark.parametrize(
    ("options", "texts"),
    [
        ((), ["[/bold] one", "two", "three", "four"]),
        (("--wrong",), ["two", "three"]),
        (("--right",), ["[/bold] one", "four"]),
        (("--truncated",), ["two", "four"]),
        (("--right", "--truncated"), ["four"]),
        (("--problem", "2"), ["three", "four"]),
        (("--limit", "1"), ["[/bold] one"]),
        (("--greedy", "--right"), ["[/bold] best"]),
    ],
)
def test_samples_are_filtered(bandpo, evaluated, options, texts):
    printed = bandpo("samples", evaluated / "math", *options).splitlines()
    assert [line for line in printed if line.startswith("math ")] == [f"math {text}" for text in texts]


def test_samples_as_plain_text_and_as_panels(bandpo, evaluated, monkeypatch):
    printed = bandpo("samples", evaluated, "--wrong", "--limit", "3")
    assert printed.splitlines() == [
        *("=== gsm8k, problem 1, answer 7", "q1 of gsm8k", "--- reward 0, 3 tokens, truncated", "gsm8k two"),
        *("=== gsm8k, problem 2, answer 7", "q2 of gsm8k", "--- reward 0, 3 tokens", "gsm8k three"),
        *("=== math, problem 1, answer 7", "q1 of math", "--- reward 0, 3 tokens, truncated", "math two"),
    ]
    monkeypatch.setenv("FORCE_COLOR", "1")
    panels = bandpo("samples", evaluated)
    assert "╭─ gsm8k, problem 1, answer 7" in panels.replace("\x1b[34m", "").replace("\x1b[0m", "")
    assert "gsm8k [/bold] one" in panels


def test_samples_of_training(bandpo, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("")
    rows = [
        {"step": step, "prompt": prompt, "completion": f"{prompt} at {step} {i}", "math": i, "advantage": i - 0.5}
        for step, prompts in ((1, "pq"), (5, "rs"))
        for prompt in prompts
        for i in (0, 1)
    ]
    (run / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    printed = bandpo("samples", run, "--step", "5", "--problem", "2", "--right")
    assert printed.splitlines() == [
        *("=== update 5, problem 2", "s", "--- reward 1, advantage 0.50, 8 characters", "s at 5 1")
    ]
    assert bandpo("samples", run, "--step", "1").count("--- reward") == 4
    assert bandpo("samples", run, "--step", "2") == ""
    assert "\nr at 5 0\n" in bandpo("samples", run, "--problem", "1")
    for options, words in (
        (("--truncated",), "do not record which were truncated"),
        (("--greedy",), "--greedy is for evaluations"),
        (("--wrong", "--right"), "exclude each other"),
    ):
        with pytest.raises(ValueError, match=words):
            bandpo("samples", run, *options)


def test_samples_show_the_whole_chat(bandpo, tmp_path, tiny):
    from bandpo.evaluation import Sampling, evaluate_into
    from bandpo.runs.callbacks import chat_text
    from bandpo.tasks import benchmark

    model, tokenizer = tiny
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    system, user = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1?"}
    data = tmp_path / "chat.jsonl"
    data.write_text(json.dumps({"question": [system, user], "answer": "2"}) + "\n")
    task, problems = benchmark(str(data))
    options = {"identity": {"model": "tiny"}}
    whole = evaluate_into(tmp_path / "out", model, tokenizer, task, problems, Sampling(2, 4), **options)
    assert evaluate_into(tmp_path / "out", None, tokenizer, task, problems, Sampling(2, 4), **options) == whole
    assert "[system]\nBe brief.\n\n[user]\n1+1?\n---" in bandpo("samples", tmp_path / "out")
    assert chat_text([system, user]) == "[system]\nBe brief.\n\n[user]\n1+1?"
    assert chat_text([user]) == chat_text("1+1?") == "1+1?"


def test_samples_of_something_else(bandpo, tmp_path, evaluated):
    with pytest.raises(ValueError, match="neither a run directory nor"):
        bandpo("samples", tmp_path / "nowhere")
    with pytest.raises(ValueError, match="--step is for run directories"):
        bandpo("samples", evaluated, "--step", "1")
