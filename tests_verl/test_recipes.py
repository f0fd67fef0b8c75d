"""Every recipe composes with verl's own files and passes its validation; what is wrong fails on the driver."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose as hydra_compose
from hydra import initialize_config_module
from omegaconf import OmegaConf
from verl.utils.config import omega_conf_to_dataclass

from bandpo.core.registry import make_rule
from bandpo.core.rules import Band
from bandpo.integrations import verl_launch as launch
from bandpo.integrations.common import read_rule

RULE = launch.RULE
ACTOR = "actor_rollout_ref.actor"
ROUTE = f"{ACTOR}.policy_loss"
MODELS, METHODS = launch.choices("base_model"), launch.choices("method")


def compose(*overrides: str):
    return launch.compose([launch.expand(override) for override in overrides])


@pytest.mark.parametrize("method", METHODS)
def test_every_method_validates_for_every_model(method):
    for model in MODELS:
        config = launch.compose(launch.recipe_overrides(f"{model}/{method}", "single-node"))
        assert config.trainer.experiment_name == f"{model}-{method}"
        actor, data = config.actor_rollout_ref.actor, config.data
        # research: 256 prompts x 16 responses, minibatches of 64, lr 1e-6, prompts of 1,024 and responses of 4,096.
        assert (data.train_batch_size, config.actor_rollout_ref.rollout.n, actor.ppo_mini_batch_size) == (256, 16, 64)
        assert (data.max_prompt_length, data.max_response_length, actor.optim.lr) == (1024, 4096, 1e-6)
        dapo = method.startswith("dapo")
        assert actor.use_kl_loss is not dapo
        assert actor.loss_agg_mode == ("token-mean" if dapo else "seq-mean-token-mean")
        assert config.algorithm.filter_groups.enable is dapo
        assert config.reward.reward_manager.name == ("dapo" if dapo else "naive")


def test_methods_are_the_papers_rules():
    def rule(method: str):
        return make_rule(**OmegaConf.to_container(launch.rule_of(compose(f"method={method}"))))

    assert rule("grpo") == make_rule("clip", low=0.2, high=0.2)
    assert rule("clip-higher") == rule("dapo") == make_rule("clip", low=0.2, high=0.28)
    assert rule("dcpo") == rule("dapo-dcpo") == make_rule("dcpo", low=0.16, high=0.2, cap=10.0)
    assert rule("no-clip") == make_rule("none")
    for name in ("kl", "tv", "chi2"):
        assert rule(f"band-{name}") == rule(f"dapo-band-{name}") == Band(radius=0.05, divergence=name, cap=10.0)


@pytest.mark.parametrize("cluster", launch.choices("cluster"))
def test_what_a_cluster_says_is_what_the_run_gets(cluster):
    overlay = OmegaConf.create((launch.RECIPES / "cluster" / f"{cluster}.yaml").read_text())
    config = launch.compose(launch.recipe_overrides("qwen2.5-3b-instruct/band-kl", cluster))
    assert OmegaConf.merge(config, overlay) == config


def test_several_nodes_join_a_running_cluster():
    config = launch.compose(launch.recipe_overrides("qwen2.5-7b/band-kl", "multi-node"))
    assert (config.trainer.nnodes, config.ray_kwargs.ray_init.address) == (2, "auto")
    facts = dict(launch.needs(config))
    assert facts["GPUs"] == "2 x 8"
    assert facts["per rollout"] == "256 prompts x 16 responses of at most 4096 tokens"
    assert facts["updates"].startswith("4 updates follow each rollout: ")
    assert facts["memory per GPU"].startswith("7.1 GiB for weights, gradients and optimizer, 7.1 GiB")


def test_on_the_cpu_nothing_of_a_gpu_is_needed(monkeypatch):
    monkeypatch.setattr(launch.importlib.util, "find_spec", lambda name: None)
    gpus, cpu = (
        launch.missing_packages(config)
        for config in (
            OmegaConf.create({"trainer": {"device": "cuda"}}),
            OmegaConf.create({"trainer": {"device": "cpu"}}),
        )
    )
    assert set(gpus) - set(cpu) == {"flash_attn (pip install flash-attn --no-build-isolation)"}


def test_a_run_on_the_cpu_validates():
    config = launch.compose(launch.recipe_overrides("qwen2.5-3b-instruct/band-kl", "cpu"))
    assert (config.trainer.device, config.trainer.n_gpus_per_node) == ("cpu", 1)
    assert config.ray_kwargs.ray_init.num_gpus == 1
    assert config.actor_rollout_ref.rollout.enable_sleep_mode is False


def test_the_environment_of_the_cpu_keeps_what_is_set(monkeypatch):
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "3")
    monkeypatch.delenv("VERL_PLATFORM", raising=False)
    launch.prepare_cpu()
    assert launch.os.environ["VLLM_CPU_KVCACHE_SPACE"] == "3"
    assert launch.os.environ["VERL_PLATFORM"] == "cpu"


def test_the_plan_names_the_anchor_and_warns_where_nothing_can_clip():
    config = compose("actor_rollout_ref.actor.ppo_mini_batch_size=256")
    facts = dict(launch.needs(config))
    assert "no clip rule can act; lower actor.ppo_mini_batch_size" in facts["warning"]
    assert facts["anchor"] == "the trainer's recomputed log-probs"
    config = compose(
        "algorithm.rollout_correction.bypass_mode=true", "actor_rollout_ref.actor.ppo_mini_batch_size=256"
    )
    facts = dict(launch.needs(config))
    assert "warning" not in facts
    assert facts["anchor"] == "the rollout engine's log-probs"
    assert facts["updates"] == (
        "1 update follows each rollout, with ratios relative to the sampler's log-probs: the clip rule can act in "
        "each of them"
    )


def test_truncated_sampling_is_a_warning_and_refused_where_the_anchor_is_the_sampler():
    facts = dict(launch.needs(compose("actor_rollout_ref.rollout.top_p=0.8")))
    assert "truncated or reweighted (top_p=0.8)" in facts["warning"]
    with pytest.raises(ValueError, match=r"reweighted \(top_k=20\).*allowed: sampling from the policy itself"):
        compose("actor_rollout_ref.rollout.top_k=20", "algorithm.rollout_correction.bypass_mode=true")


def test_verls_own_entry_point_says_whether_a_rule_can_act_before_ray_starts(tmp_path):
    # Ray refuses this number of CPUs, so the run ends where Ray would start.
    broken = "ray_kwargs.ray_init.num_cpus=none"
    many = run_command(tmp_path, broken)
    assert "bandpo: 4 updates follow each rollout: once the weights have moved" in many.stdout
    one = run_command(
        tmp_path, "actor_rollout_ref.actor.ppo_mini_batch_size=256", "ray_kwargs.ray_init.num_cpus=none"
    )
    assert "bandpo: 1 update follows each rollout: every ratio is 1 and no clip rule can act" in one.stdout
    assert "ray init kwargs" not in one.stdout.partition("bandpo: ")[0]


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("rule.raduis=0.1", "clip rule 'band' has no option 'raduis' (did you mean 'radius'?)"),
        ("rule.radius=-1", "radius must be > 0 and finite, got -1.0"),
        ("rule.divergence=lk", "'lk'"),
        ("rule.name=bnad", "unknown clip rule 'bnad' (did you mean 'band'?)"),
        ("rule.name=clip", "clip rule 'clip' has no option"),
        (f"{ROUTE}.loss_mode=vanilla", "loss_mode is 'vanilla'"),
        (f"{ROUTE}.loss_mode=bypass_mode", "loss_mode is 'bypass_mode'"),
        (f"+{ROUTE}.band_radius=0.1", "unexpected keyword argument 'band_radius'"),
        (f"{ROUTE}._target_=bandpo.integrations.verl.Nothing", "Nothing"),
        (f"{RULE}=0.05", "rule is 0.05; allowed: a mapping"),
        ("actor_rollout_ref.actor.loss_agg_mode=mean", "Invalid loss_agg_mode: mean"),
        ("data.train_batch_size=100", "data.train_batch_size is 100"),
        ("trainer.total_epoch=1", "total_epoch"),
    ],
)
def test_what_is_wrong_is_one_sentence(override, sentence):
    with pytest.raises(ValueError) as caught:
        compose(override)
    message = str(caught.value)
    assert sentence in message
    assert "\n" not in message


def test_a_pair_of_radii_reaches_the_rule():
    config = compose("rule.radius=[0.02,0.1]")
    policy_loss = omega_conf_to_dataclass(config.actor_rollout_ref.actor).policy_loss
    assert read_rule(policy_loss.rule) == Band(radius=(0.02, 0.1), cap=10.0)


def run_command(folder: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *launch.command([launch.expand(o) for o in overrides])]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False, cwd=folder)


def test_the_printed_command_is_verls_own_entry_point(tmp_path):
    shown = run_command(tmp_path, "base_model=qwen2.5-7b", "method=dapo-band-tv", "rule.radius=0.07", "--cfg=job")
    assert shown.returncode == 0, shown.stderr[-2000:]
    config = OmegaConf.create(shown.stdout)
    assert launch.rule_of(config) == {"name": "band", "divergence": "tv", "radius": 0.07, "cap": 10.0}
    assert config.actor_rollout_ref.model.path == "Qwen/Qwen2.5-7B"


def test_verl_itself_stops_before_ray_starts_when_the_rule_is_wrong(tmp_path):
    stopped = run_command(tmp_path, "rule.raduis=0.07")
    assert stopped.returncode != 0
    assert "has no option 'raduis' (did you mean 'radius'?)" in stopped.stderr
    assert "ray init kwargs" not in stopped.stdout


def test_the_three_lines_of_the_documentation_work_on_verls_own_configuration():
    text = (Path(__file__).parents[1] / "docs/integrations/verl.md").read_text()
    lines = text.partition("## Three lines\n```\n")[2].partition("```")[0].split("\n")
    overrides = [line.strip("'") for line in lines if line]
    with initialize_config_module("verl.trainer.config", version_base=None):
        config = hydra_compose("ppo_trainer", overrides=[*overrides, f"{ACTOR}.ppo_micro_batch_size_per_gpu=1"])
    policy_loss = omega_conf_to_dataclass(config.actor_rollout_ref.actor).policy_loss
    assert len(overrides) == 3
    assert read_rule(policy_loss.rule) == Band(radius=0.05)


def test_launch_refuses_a_policy_loss_that_would_ignore_the_rule():
    verls = "verl.workers.config.PolicyLossConfig"
    with pytest.raises(ValueError, match=f"_target_ is '{verls}'; allowed: 'bandpo.integrations.verl.Band"):
        compose(f"{ROUTE}._target_={verls}", f"{ROUTE}.loss_mode=vanilla", f"~{RULE}")
