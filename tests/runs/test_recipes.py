"""Recipes: what they inherit, the batches they make, and the commands that start them."""

import re
import shlex
from pathlib import Path

import pytest
import trl
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from trl.scripts import vllm_serve
from typer.main import get_command

from bandpo.cli.app import app
from bandpo.runs.build import build_args
from bandpo.runs.config import load_config, read_recipe, recipe_names
from bandpo.runs.run_dir import RunDirectory
from bandpo.runs.steps import plan_steps
from bandpo.runs.train_settings import check_train_settings
from bandpo.training.config import can_clip


def write(folder, **recipes):
    for name, text in recipes.items():
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    return str(folder / f"{next(reversed(recipes))}.yaml")


def test_a_recipe_holds_only_what_differs(tmp_path):
    path = write(
        tmp_path,
        root="model: {path: a, dtype: float16, scratch: {layers: 1, heads: 2}}\n"
        "lora: {rank: 4, targets: [x, y]}\ntrain: {max_steps: 1, top_k: 3}",
        middle="base: root.yaml\ntrain: {max_steps: 2}\nlora: {targets: [z]}",
        leaf="base: middle.yaml\nmodel: {path: b, scratch: {layers: 3}}\ntrain: {top_p: 0.5}",
    )
    assert read_recipe(path) == {
        "model": {"path": "b", "dtype": "float16", "scratch": {"layers": 3, "heads": 2}},
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
        ({"a": "base: [quickstart]"}, ["['quickstart']", "allowed: a recipe's name"]),
    ],
)
def test_mistakes_in_inheritance_are_named(tmp_path, recipes, words):
    path = write(tmp_path, **recipes)
    with pytest.raises(ValueError) as caught:
        read_recipe(path)
    for word in words:
        assert word in str(caught.value)


# The packaged recipes

ROOT = Path(__file__).parents[2]
PAPER = ("qwen2.5-3b", "qwen2.5-7b", "llama-3-8b", "qwen2.5-3b-dapo")
MANY = {"scratch", "letters", "summands"}  # updates a rollout
NEEDS = {"word-problems": ["task.data=problems.jsonl"]}


def args_of(config, folder):
    return build_args(config, check_train_settings(config.train), RunDirectory(folder))


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_builds_the_trainers_configuration(name, tmp_path):
    config = load_config(name, NEEDS.get(name))
    args = args_of(config, tmp_path)
    assert can_clip(args), "a recipe under which no rule can act"
    processes = 4 if name in PAPER else 1
    assert plan_steps(args, None, processes).updates_per_rollout == (16 if name in MANY else 4)


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_batches(name, tmp_path):
    args = args_of(load_config(name), tmp_path)
    assert args.learning_rate == 1e-6
    assert args.max_completion_length == 4096
    assert args.num_train_epochs == 10
    assert (args.bf16, args.gradient_checkpointing, args.use_vllm, args.vllm_mode) == (True, True, True, "server")
    assert args.scale_rewards == "group"
    for processes, accumulation in ((4, 64), (8, 32), (16, 16)):  # the table of docs/scale.md
        config = load_config(name, [f"train.gradient_accumulation_steps={accumulation}"])
        steps = plan_steps(args_of(config, tmp_path), None, processes)
        assert (steps.prompts, steps.completions, steps.updates_per_rollout) == (256, 4096, 4)
        each = steps.micro_batch * steps.micro_batches
        assert each % args.num_generations == 0, "dynamic sampling wants whole groups on each process"


def test_dapo_differs_from_its_base_where_it_says(tmp_path):
    base, dapo = (args_of(load_config(name), tmp_path) for name in ("qwen2.5-3b", "qwen2.5-3b-dapo"))
    differ = {key for key, value in vars(base).items() if vars(dapo)[key] != value}
    assert differ - {"distributed_state", "reward_weights"} == {
        "loss_type", "beta", "dynamic_sampling", "mask_truncated_completions",
    }  # fmt: skip
    assert (base.loss_type, base.beta) == ("grpo", 0.001)
    assert (dapo.loss_type, dapo.beta, dapo.dynamic_sampling) == ("dapo", 0.0, 10)
    (overlong,) = load_config("qwen2.5-3b-dapo").shaping
    assert overlong["name"] == "overlong"
    assert overlong["buffer"] == 512


def test_the_papers_data(monkeypatch):
    """What is trained on and held out, with rows in the place of the hub's."""
    from bandpo.tasks import questions

    sizes = {"DAPO-Math-17k": 50, "hendrycks_math": 40, "aime_2024": 30, "aime25": 30, "amc23": 40}

    def rows(source, subsets, split, known):
        (name,) = [key for key in sizes if key in source]
        one = {"question": "q", "problem": "q", "prompt": "q", "answer": "1", "solution": "\\boxed{1}"}
        return [
            {key: f"{name} {i}" if value == "q" else value for key, value in one.items()}
            | {"reward_model": {"ground_truth": "1"}, "level": f"Level {i % 5 + 1}"}
            for i in range(sizes[name])
        ]

    monkeypatch.setattr(questions, "read_hub", rows)
    train, heldout = load_config("qwen2.5-3b").task.problems()
    assert {p.question.split()[0] for p in train} == {"DAPO-Math-17k", "hendrycks_math"}
    assert len([p for p in train if "DAPO" in p.question]) == 50
    levels = {int(p.question.split()[1]) % 5 + 1 for p in train if "hendrycks" in p.question}
    assert levels == {3, 4, 5}
    assert {name: len([p for p in heldout if name in p.question]) for name in sizes} == {
        "DAPO-Math-17k": 0, "hendrycks_math": 0, "aime_2024": 30, "aime25": 30, "amc23": 40,
    }  # fmt: skip


# The commands of docs/scale.md

TRL_FILES = Path(trl.__file__).parent / "accelerate_configs"


def commands():
    """Every command of the page as words, shell variables and settings of the environment replaced."""
    text = (ROOT / "docs/scale.md").read_text(encoding="utf-8")
    for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL):
        for line in block.splitlines():
            if line.startswith("TRL="):
                continue
            words = shlex.split(line.replace("$TRL", str(TRL_FILES)))
            while re.fullmatch(r"[A-Z_]+=.*", words[0]):
                words = words[1:]
            yield words


def parse_bandpo(words):
    """Let the real command line parse the options; recipe and overrides are then resolved."""
    command = get_command(app).commands[words[0]]
    parsed = command.make_context(words[0], list(words[1:])).params
    if words[0] == "train":
        return load_config(parsed["recipe"], parsed["overrides"])
    return None


@pytest.mark.parametrize("words", commands(), ids=lambda words: words[-1])
def test_every_command_of_the_page_parses(words, tmp_path):
    program, *rest = words
    if program == "bandpo":
        parse_bandpo(rest)
    elif program == "trl":
        assert rest[0] == "vllm-serve"
        served, *_, unknown = vllm_serve.make_parser().parse_args_and_config(rest[1:], return_remaining_strings=True)
        assert unknown == []
        models = {load_config(name).model.path for name in PAPER}
        assert served.model in models
        assert served.max_model_len >= 1024 + 4096
    else:
        assert (program, rest[0]) == ("accelerate", "launch")
        launch = launch_command_parser().parse_args(rest[1:])
        assert launch.module
        assert launch.training_script == "bandpo"
        assert launch.config_file is None or load_config_from_file(launch.config_file)
        config = parse_bandpo(launch.training_script_args)
        updates = plan_steps(args_of(config, tmp_path), None, launch.num_processes).updates_per_rollout
        assert updates == (16 if "scratch" in launch.training_script_args else 4)


@pytest.mark.parametrize(("name", "kind"), [("fsdp2", "FSDP"), ("zero3", "DEEPSPEED"), ("multi_gpu", "MULTI_GPU")])
def test_accelerate_reads_its_files(name, kind):
    assert load_config_from_file(str(TRL_FILES / f"{name}.yaml")).distributed_type == kind
