"""What a run will need: arithmetic against the real trainer, memory against real processes."""

import json
import os
import re
import subprocess
import sys
from importlib import metadata
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

from bandpo.cli.plan import print_plan
from bandpo.runs.build import build_args, build_model, build_trainer
from bandpo.runs.config import load_config
from bandpo.runs.job import run_training
from bandpo.runs.memory import Architecture, estimate_memory
from bandpo.runs.plan import make_plan
from bandpo.runs.prompts import position_obstacle
from bandpo.runs.run_dir import RunDirectory
from bandpo.runs.steps import plan_steps, planned_rollouts
from bandpo.runs.train_settings import check_train_settings
from bandpo.tasks import Problem
from helpers import TINY

SMALL = [
    *TINY,
    "warmup=null",
    "task={name: arithmetic, low: 0, high: 4, heldout: 5}",
    "train.max_completion_length=6",
    "train.max_steps=2",
    "eval.samples=4",
]
LAUNCH = """
import sys
from pathlib import Path
from bandpo.cli import main
try:
    main()
finally:
    print(next(l for l in Path("/proc/self/status").read_text().splitlines() if l.startswith("VmHWM")))
"""


def trainer_of(overrides, folder):
    config = load_config("scratch", [*SMALL, *overrides])
    args = build_args(config, check_train_settings(config.train), RunDirectory(folder))
    train, _ = config.task.problems()
    return build_trainer(config, args, *build_model(config), train), len(train)


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        ["train.max_steps=7"],
        ["train.max_steps=5", "train.gradient_accumulation_steps=3"],
        ["train.max_steps=-1", "train.num_train_epochs=2"],
        ["train.max_steps=-1", "train.num_train_epochs=1.5", "train.gradient_accumulation_steps=2"],
        ["train.max_steps=-1", "train.num_train_epochs=1", "train.num_iterations=2"],
        ["train.max_steps=-1", "train.num_train_epochs=1.5", "train.gradient_accumulation_steps=3"],
        ["train.max_steps=12", "train.gradient_accumulation_steps=3"],
    ],
)
def test_steps_are_those_of_the_trainer(tmp_path, overrides):
    trainer, problems = trainer_of(overrides, tmp_path)
    rolled_out = []
    generate = trainer._generate_single_turn
    trainer._generate_single_turn = lambda prompts, *rest: rolled_out.append(prompts) or generate(prompts, *rest)
    steps = plan_steps(trainer.args, problems)
    order = planned_rollouts(trainer, steps)
    trainer.train()
    assert steps.updates == trainer.state.global_step
    assert steps.rollouts == len(rolled_out)
    assert steps.epochs == pytest.approx(trainer.state.epoch, rel=0.35)  # the trainer counts in micro-batches
    # The prompts that the run is said to meet first are those it met.
    for planned, met in zip(order, rolled_out, strict=False):
        texts = [trainer.train_dataset[i]["prompt"] for i in planned]
        assert [trainer.processing_class.decode(ids) for ids in met] == texts


def test_batches_that_cannot_be(tmp_path):
    args = trainer_of([], tmp_path)[0].args
    with pytest.raises(ValueError, match=r"16.*multiple of.*4 x 3 processes = 12"):
        plan_steps(args, 100, processes=3)
    with pytest.raises(ValueError, match="takes 4 prompts, but there are only 3"):
        plan_steps(args, 3)


def test_estimates_count_what_is_there(tiny):
    model, _ = tiny
    shape = Architecture.of(model)
    sizes = {"sequences": 3, "tokens": 10, "completion": 6, "generated": 5}
    memory = estimate_memory(shape, **sizes)
    assert memory.weights == sum(p.numel() * p.element_size() for p in model.parameters())
    model(torch.ones(3, 10, dtype=torch.long)).logits.sum().backward()
    assert memory.gradients == sum(p.grad.numel() * p.grad.element_size() for p in model.parameters())
    optimizer = torch.optim.AdamW(model.parameters())
    optimizer.step()
    states = [v for state in optimizer.state.values() for v in state.values() if v.dim()]
    assert memory.optimizer == sum(v.numel() * v.element_size() for v in states)
    cache = model(torch.ones(5, 10, dtype=torch.long), use_cache=True).past_key_values
    kept = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
    assert memory.cache == sum(t.numel() * t.element_size() for t in kept)
    assert shape.block == sum(p.numel() for p in model.model.layers[0].parameters())


def test_sharding_divides_what_is_kept(tiny):
    shape = Architecture.of(tiny[0])
    sizes = {"sequences": 3, "tokens": 10, "completion": 6, "generated": 0, "reference": True}
    one, four = (estimate_memory(shape, **sizes, processes=n) for n in (1, 4))
    for name in ("reference", "gradients", "optimizer"):
        assert getattr(four, name) == getattr(one, name) // 4
    assert four.working == one.working
    assert one.weights // 4 < four.weights  # layers are gathered to be used
    assert estimate_memory(shape, **sizes, checkpointing=True).working < one.working


@pytest.mark.slow
def test_activations_are_of_the_right_size():
    """Against what autograd really keeps."""
    from bandpo.models import scratch_model

    model, _ = scratch_model(hidden_size=128, layers=4, heads=4, positions=128, seed=0)
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden = model.model(torch.ones(8, 64, dtype=torch.long), use_cache=False).last_hidden_state
    real = sum(size for pointer, size in kept.items() if pointer not in weights)
    assert hidden.shape == (8, 64, 128)
    estimate = estimate_memory(Architecture.of(model), sequences=8, tokens=64, completion=32, generated=0)
    assert estimate.working == pytest.approx(real, rel=0.35)


def run(*arguments, cwd):
    return subprocess.run(
        [sys.executable, "-c", LAUNCH, *arguments], capture_output=True, text=True, cwd=cwd, timeout=300, check=False,
        env={**os.environ, "COLUMNS": "200", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


@pytest.mark.slow
def test_a_dry_run_foretells_the_memory_and_leaves_nothing(tmp_path):
    command = (
        "train", "scratch", "warmup=null", "task.heldout=4", "eval={samples: 1, greedy: false}", "train.max_steps=2",
        "train.max_completion_length=24", "train.generation_batch_size=256", "train.per_device_train_batch_size=128",
    )  # fmt: skip
    dry = run(*command, "--dry-run", cwd=tmp_path)
    assert dry.returncode == 0, dry.stderr
    assert list(tmp_path.iterdir()) == []
    amount, unit = re.search(r"peak ([\d.]+) (GB|MB) on each process \(measured", dry.stdout).groups()
    foretold = float(amount) * {"GB": 1e9, "MB": 1e6}[unit]
    real = run(*command, "--output", "out", cwd=tmp_path)
    assert real.returncode == 0, real.stderr
    used = int(re.search(r"VmHWM:\s+(\d+) kB", real.stdout).group(1)) * 1024
    assert foretold == pytest.approx(used, rel=0.2)
    for words in ("2 per rollout", "2 in total, from 1 rollouts", "ratios leave 1", "prompt (128, 7)", "2.201"):
        assert words in dry.stdout


def text_of(plan):
    console = Console(width=200, record=True, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115
    print_plan(plan, console)
    return console.export_text()


@pytest.mark.slow
def test_on_policy_runs_are_told(recwarn):
    plan = make_plan(load_config("scratch", [*SMALL, "train.gradient_accumulation_steps=4"]))
    assert not plan.clips
    assert "every ratio is 1" in text_of(plan)


@pytest.mark.slow
def test_the_longest_prompt_that_the_run_meets(tmp_path):
    rows = [{"question": "1" * (3 + i), "answer": "1"} for i in range(40)]
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    task = f"task={{name: questions, data: '{path}', heldout: 2}}"
    short = make_plan(load_config("scratch", [*SMALL, task, "train.max_steps=1"]))
    longer = make_plan(load_config("scratch", [*SMALL, task, "train.max_steps=36"]))
    assert short.prompt_tokens < longer.prompt_tokens
    assert short.steps.rollouts == 1
    train, _ = load_config("scratch", [*SMALL, task]).task.problems()
    assert longer.prompt_tokens == max(len(p.question) for p in train)


@pytest.mark.slow
def test_the_probe_is_as_large_as_it_gets(monkeypatch):
    from trl import GRPOTrainer

    generate, loss = GRPOTrainer._generate_single_turn, GRPOTrainer._compute_loss
    lengths, shapes, masked = set(), [], []

    def generating(*arguments, **options):
        result = generate(*arguments, **options)
        lengths.update(map(len, result[0]))
        return result

    def losing(trainer, model, inputs):
        shapes.append(tuple(inputs["completion_ids"].shape))
        masked.append(bool((inputs["completion_mask"] == 0).any()))
        return loss(trainer, model, inputs)

    monkeypatch.setattr(GRPOTrainer, "_generate_single_turn", generating)
    monkeypatch.setattr(GRPOTrainer, "_compute_loss", losing)
    settings = ["train.max_completion_length=40", "train.mask_truncated_completions=true", "train.beta=0.1"]
    plan = make_plan(load_config("scratch", [*SMALL, *settings]))
    assert lengths == {40}
    assert shapes == [(4, 40)] * 2
    assert masked == [False] * 2
    assert plan.needs.memory.reference == plan.needs.memory.weights


def test_a_model_that_is_elsewhere(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    settings = [*SMALL, "model={path: no-such-organisation/no-such-model}"]
    plan = make_plan(load_config("scratch", settings))
    assert plan.needs.memory is None
    assert "cannot load model 'no-such-organisation/no-such-model'" in text_of(plan)
    build_model(load_config("scratch", SMALL))[0].config.save_pretrained(tmp_path)
    plan = make_plan(load_config("scratch", [*SMALL, f"model={{path: {tmp_path}}}"]))
    assert plan.obstacles
    assert plan.needs.memory is not None
    assert not plan.needs.memory.measured
    assert plan.needs.architecture == Architecture.of(build_model(load_config("scratch", SMALL))[0])


@pytest.mark.slow
def test_data_that_is_elsewhere(tmp_path):
    (tmp_path / "x.yaml").write_text("base: word-problems\ntask: {data: nowhere.jsonl}\n", encoding="utf-8")
    result = run("train", "x.yaml", "model={path: a/b}", "--dry-run", cwd=tmp_path)
    assert result.returncode == 1
    assert "nowhere.jsonl" in result.stdout
    assert "8 prompts x 8 = 64 completions" in result.stdout


# bandpo doctor


def test_doctor_names_what_is_missing(monkeypatch):
    from bandpo.cli import doctor

    version = metadata.version
    fake = {"trl": "1.2.0", "torch": "2.13.0"}

    def pretend(package):
        if package == "vllm":
            raise metadata.PackageNotFoundError(package)
        return fake.get(package) or version(package)

    monkeypatch.setattr(doctor.metadata, "version", pretend)
    monkeypatch.setattr(doctor, "ask_hub", lambda: "asked")
    diagnosis = doctor.diagnose()
    found = {r.package: r for r in diagnosis.requirements}
    assert found["torch"].works
    assert (found["trl"].installed, found["trl"].works) == ("1.2.0", False)
    assert found["trl"].command == "pip install 'bandpo[train]'"
    assert (found["vllm"].installed, found["vllm"].works) == (None, False)
    assert found["vllm"].command == "pip install 'trl[vllm]'"
    assert diagnosis.broken == []
    fake["torch"] = "2.0.0"
    assert doctor.diagnose().broken == ["torch >=2.6 is needed, 2.0.0 is installed"]


def test_every_requirement_is_looked_at():
    from bandpo.cli.doctor import _own_requirements

    seen = {r.package for r in _own_requirements()}
    assert {"torch", "typer", "matplotlib", "trl", "math-verify"} <= seen
    assert not seen & {"pytest", "hypothesis", "bandpo"}


def test_a_wrong_operator_is_noticed(monkeypatch):
    import bandpo
    from bandpo.cli.doctor import _check_operator

    assert _check_operator() == []
    band = bandpo.band
    monkeypatch.setattr(bandpo, "band", lambda logps, radius, divergence: band(logps, radius=0.06))
    assert "the operator is wrong" in _check_operator()[0]


def test_the_largest_model_fits_and_a_larger_one_does_not():
    from bandpo.runs.memory import largest_models

    small, large = (largest_models(free, gpu=False) for free in (8 * 10**9, 64 * 10**9))
    for way in small:
        assert 0 < small[way] < large[way]
    assert small["full fine-tuning"] < small["LoRA"]
    assert 16 * large["full fine-tuning"] < 64e9  # weights, gradients and two states alone
    assert largest_models(1000, gpu=False) == {"full fine-tuning": 0, "LoRA": 0}


def test_the_hub_is_asked_shortly(monkeypatch):
    import threading
    from http.server import BaseHTTPRequestHandler, HTTPServer

    from huggingface_hub import constants

    from bandpo.cli.doctor import ask_hub

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert ask_hub() == "not asked: HF_HUB_OFFLINE is set"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with HTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(constants, "ENDPOINT", address)
        assert ask_hub() == f"{address} answers"
    assert f"{address} cannot be reached" in ask_hub()


@pytest.mark.slow
def test_doctor_prints_a_page_and_json(tmp_path):
    page = run("doctor", cwd=tmp_path)
    assert page.returncode == 0, page.stderr
    for words in ("training", "vLLM generation", "largest by LoRA", "bandpo --install-completion"):
        assert words in page.stdout
    told = json.loads(run("doctor", "--json", cwd=tmp_path).stdout.rpartition("VmHWM")[0])
    assert told["broken"] == []
    assert {r["package"] for r in told["requirements"]} >= {"torch", "trl", "verl"}


@pytest.mark.slow
def test_completion_is_offered(tmp_path):
    from typer.main import get_command

    from bandpo.cli.app import app

    assert "--install-completion" in {option for p in get_command(app).params for option in p.opts}


# Prompts against positions


NO_ROOM = ("80 tokens", "train.max_completion_length is 6", "together 86", "64 positions", "1 of 12 prompts",
           "model.scratch.positions=86")  # fmt: skip


@pytest.mark.slow
def test_prompts_that_do_not_fit_are_an_obstacle_and_end_a_run_before_it_starts(tmp_path):
    rows = [{"question": "1" * (80 if i == 7 else 3 + i), "answer": "1"} for i in range(12)]
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    settings = [*SMALL, f"task={{name: questions, data: '{path}', heldout: 2}}"]
    plan = make_plan(load_config("scratch", settings))
    (obstacle,) = plan.obstacles
    with pytest.raises(ValueError) as caught:
        run_training(load_config("scratch", settings), tmp_path / "out", Console(quiet=True))
    assert str(caught.value) == obstacle
    for words in NO_ROOM:
        assert words in obstacle
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("completion", "positions", "words"),
    [
        (5, 8, None),
        (6, 8, "train.max_completion_length=5 or less"),
        (6, 2, "give a model with more positions"),
        (6, None, None),
    ],
)
def test_what_fits_is_prompt_and_completion_together(tiny, completion, positions, words):
    config = load_config("scratch", ["model={path: me/mine}", "task={name: questions, data: gsm8k}"])
    sizes = SimpleNamespace(max_position_embeddings=positions)
    sizes.get_text_config = lambda: sizes
    problems = [Problem("1+1", "2"), Problem("1", "1")]
    obstacle = position_obstacle(config, sizes, tiny[1], problems, completion)
    assert words in obstacle if words else obstacle is None


def test_a_prompt_without_its_chat_template_is_told_beside_a_model_that_cannot_be_loaded(tmp_path):
    model, tokenizer = build_model(load_config("scratch", SMALL))
    model.config.save_pretrained(tmp_path / "m")
    system = {"role": "system", "content": "Be brief."}
    data = tmp_path / "chat.jsonl"
    rows = [{"question": [system, {"role": "user", "content": f"{i}+1?"}], "answer": str(i + 1)} for i in range(20)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = [
        *SMALL,
        f"model={{path: '{tmp_path / 'm'}'}}",
        f"task={{name: questions, data: '{data}', heldout: 2}}",
    ]
    without, unknown = make_plan(load_config("scratch", settings)).obstacles
    assert "has no tokenizer" in without
    assert "it is unknown whether the prompts fit" in unknown
    tokenizer.save_pretrained(tmp_path / "m")
    no_weights, no_template = make_plan(load_config("scratch", settings)).obstacles
    assert "cannot load model" in no_weights
    assert "need a chat template, but the model has none" in no_template


def test_a_hub_that_cannot_be_reached_is_asked_once(monkeypatch):
    import transformers

    asked = []

    def refuse(kind):
        def from_pretrained(*_, local_files_only=False, **__):
            asked.append((kind, local_files_only))
            raise OSError("not reached")

        return from_pretrained

    for kind in ("AutoTokenizer", "AutoConfig", "AutoModelForCausalLM"):
        monkeypatch.setattr(getattr(transformers, kind), "from_pretrained", refuse(kind))
    plan = make_plan(load_config("scratch", [*SMALL, "model={path: me/mine}"]))
    assert "cannot load model 'me/mine'" in plan.obstacles[0]
    assert [kind for kind, cached in asked if not cached] == ["AutoTokenizer"]


@pytest.mark.slow
def test_a_dry_run_says_what_it_does_before_it_imports_anything(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", "from bandpo.cli import main; main()", "train", "scratch", *SMALL, "--dry-run"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path,
    )  # fmt: skip
    first = process.stderr.readline()
    slow = [line for line in open(f"/proc/{process.pid}/maps") if "libtorch" in line]  # noqa: SIM115
    page, rest = process.communicate(timeout=300)
    assert first == "checking the settings ...\n"
    assert not slow
    assert process.returncode == 0, rest
    assert [line.split()[0] for line in rest.splitlines()] == ["reading", "loading", "measuring"]
    assert "..." not in page
