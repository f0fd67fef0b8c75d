"""Runs of the paper in verl: compose a recipe with verl's own Hydra files, validate it, show what it needs, start it.

Recipe names are read from the package itself; everything else needs verl.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from bandpo.words import first_line, nearest

RECIPES = resources.files("bandpo") / "recipes" / "verl"
PACKAGE, CONFIG = "bandpo.recipes.verl", "paper"
RULE = "actor_rollout_ref.actor.policy_loss.rule"
# What a run imports beyond verl itself, and where it comes from.
NEEDED = {
    "vllm": "pip install vllm",
    "flash_attn": "pip install flash-attn --no-build-isolation",
    "transfer_queue": "pip install TransferQueue",
    "math_verify": "pip install 'math-verify[antlr4_9_3]'",
}
# What verl and vLLM read in every process of a run on the CPU; verl's FSDP engine is registered under "cuda" alone.
ON_CPU = {
    "VERL_PLATFORM": "cpu",
    "VERL_ENGINE_DEVICE": "cuda",
    "VERL_USE_EXTERNAL_MODULES": "bandpo.integrations.verl_cpu",
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_HOST_IP": "127.0.0.1",
    "OMP_NUM_THREADS": "1",
}
# Bytes per parameter: float32 weights, gradients and Adam's two moments, sharded over all GPUs.
TRAINING_BYTES = 16
ROLLOUT_BYTES = 2


def choices(group: str) -> list[str]:
    """The overlays of a group: base_model, method, cluster, setting or rule."""
    return sorted(p.name.removesuffix(".yaml") for p in (RECIPES / group).iterdir() if p.name.endswith(".yaml"))


def recipe_overrides(recipe: str, cluster: str) -> list[str]:
    """Hydra's choices for a recipe MODEL/METHOD.

    Raises:
        ValueError: If it is not of that form, or a part is unknown (names the nearest known one).
    """
    model, slash, method = recipe.partition("/")
    if not slash:
        raise ValueError(f"recipe {recipe!r} is not of the form MODEL/METHOD, e.g. qwen2.5-3b-instruct/band-kl")
    chosen = {"base_model": model, "method": method, "cluster": cluster}
    for group, name in chosen.items():
        known = choices(group)
        if name not in known:
            raise ValueError(f"unknown {group} {name!r}{nearest(name, known)}; known: {', '.join(known)}")
    return [f"{group}={name}" for group, name in chosen.items()]


def expand(override: str) -> str:
    """`rule.radius=0.1` is short for verl's full key; other keys are Hydra's.

    Raises:
        ValueError: If it is not of the form key=value.
    """
    if "=" not in override and not override.startswith("~"):  # Hydra's deletions
        raise ValueError(f"override {override!r} is not of the form key=value, e.g. rule.radius=0.1")
    # ++ sets a key whether or not the recipe has it; a rule's options are checked when the rule is built.
    return f"++{RULE}.{override.removeprefix('rule.')}" if override.startswith("rule.") else override


def command(overrides: Sequence[str]) -> list[str]:
    """The command that starts the run: verl's own entry point, watched (bandpo.integrations.verl_main)."""
    entry = ["-m", "bandpo.integrations.verl_main", "--config-path", f"pkg://{PACKAGE}", "--config-name", CONFIG]
    return [*entry, *overrides]


def compose(overrides: Sequence[str]) -> Any:
    """The full configuration, composed with verl's own files and passed by verl's own validation.

    Raises:
        ValueError: For anything that does not compose or validate, in one sentence.
        RuntimeError: If verl is not installed.
    """
    if importlib.util.find_spec("verl") is None:
        raise RuntimeError("verl is not installed here; see docs/integrations/verl.md for how to install it")
    from hydra import compose as hydra_compose
    from hydra import initialize_config_module
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import validate_config

    try:
        with initialize_config_module(PACKAGE, version_base=None):
            config = hydra_compose(CONFIG, overrides=list(overrides))
        OmegaConf.resolve(config)
        with contextlib.redirect_stdout(sys.stderr):
            validate_config(config, need_reference_policy(config), need_critic(config))
        rule_of(config)
        check_minibatches(config)
    except (HydraException, OmegaConfBaseException, AssertionError, TypeError) as error:
        raise ValueError(_reason(error)) from error
    return config


def _reason(error: BaseException) -> str:
    """The first line of the innermost cause: Hydra wraps the cause in messages about what it was doing."""
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(error)


def rule_of(config: Any) -> Any:
    """The clip rule of a configuration.

    Raises:
        ValueError: If the policy loss is not ours, so that no rule would act.
    """
    from bandpo.integrations.verl import BandPolicyLossConfig

    policy_loss = config.actor_rollout_ref.actor.policy_loss
    target = f"{BandPolicyLossConfig.__module__}.{BandPolicyLossConfig.__name__}"
    if policy_loss.get("_target_") != target:
        raise ValueError(f"policy_loss._target_ is {policy_loss.get('_target_')!r}; allowed: {target!r}")
    return policy_loss.rule


def check_minibatches(config: Any) -> None:
    """Raise ValueError if a rollout does not divide into minibatches, which verl notices only at the first update."""
    prompts, size = config.data.train_batch_size, config.actor_rollout_ref.actor.ppo_mini_batch_size
    if prompts % size:
        raise ValueError(f"data.train_batch_size is {prompts}; allowed: a multiple of ppo_mini_batch_size, {size}")


def prepare_cpu() -> None:
    """Let verl run on the CPU, here and in the processes that start from here; what is set already stays."""
    for name, value in ON_CPU.items():
        os.environ.setdefault(name, value)


def missing_packages(config: Any) -> list[str]:
    """'NAME (how to install it)' for each package that this run imports and that is not installed here."""
    needed = {name: how for name, how in NEEDED.items() if name != "flash_attn" or config.trainer.device != "cpu"}
    return [f"{name} ({how})" for name, how in needed.items() if importlib.util.find_spec(name) is None]


def missing_data(config: Any) -> list[str]:
    """The data files that are missing."""
    files = [*config.data.train_files, *config.data.val_files]
    return [path for path in files if not Path(path).expanduser().is_file()]


def needs(config: Any) -> Iterator[tuple[str, str]]:
    """(what, how much) for each thing that a run of this configuration needs or does."""
    from bandpo.integrations.verl import outlook_of

    actor, rollout, trainer = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout, config.trainer
    gpus = trainer.nnodes * trainer.n_gpus_per_node
    prompts = config.data.train_batch_size
    parameters = config.get("bandpo", {}).get("parameters")
    rule = dict(rule_of(config))
    yield "model", str(config.actor_rollout_ref.model.path)
    yield "rule", ", ".join(f"{key}={value}" for key, value in rule.items())
    bypass = config.algorithm.rollout_correction.bypass_mode
    yield "anchor", "the rollout engine's log-probs" if bypass else "the trainer's recomputed log-probs"
    yield "dual clip", f"ratio {actor.clip_ratio_c} for negative advantages (actor.clip_ratio_c)"
    yield "GPUs", f"{trainer.nnodes} x {trainer.n_gpus_per_node}"
    if parameters:
        training = TRAINING_BYTES * parameters / gpus / 2**30
        serving = ROLLOUT_BYTES * parameters / rollout.tensor_model_parallel_size / 2**30
        yield (
            "memory per GPU",
            (
                f"{training:.1f} GiB for weights, gradients and optimizer, {serving:.1f} GiB for vLLM's weights; "
                "activations and the KV cache come on top"
            ),
        )
    yield (
        "per rollout",
        f"{prompts} prompts x {rollout.n} responses of at most {config.data.max_response_length} tokens",
    )
    updates, can_act, advice = outlook_of(config)
    yield "updates", updates
    if not can_act:
        yield "warning", f"{updates}; lower actor.ppo_mini_batch_size"
    if advice is not None:
        yield "warning", advice
    yield "data", ", ".join([*config.data.train_files, *config.data.val_files])
    yield "checkpoints", str(trainer.default_local_dir)


def run_local(overrides: Sequence[str]) -> int:
    """Run verl here, in a separate process (it starts or joins Ray as its configuration says); its exit code."""
    import subprocess

    return subprocess.run([sys.executable, *command(overrides)], check=False).returncode


def submit(overrides: Sequence[str], address: str) -> str:
    """Submit the run to a Ray cluster at its dashboard's address; returns the job's id.

    The cluster's own Python environment runs it, so verl and bandpo must be installed on every node.

    Raises:
        RuntimeError: If no cluster answers there.
    """
    from ray.job_submission import JobSubmissionClient

    try:
        client = JobSubmissionClient(address)
        variables = {name: os.environ[name] for name in ("BANDPO_VERL_DATA",) if name in os.environ}
        return str(
            client.submit_job(
                entrypoint=shlex.join(["python", *command(overrides)]), runtime_env={"env_vars": variables}
            )
        )
    except (ConnectionError, RuntimeError) as error:
        raise RuntimeError(f"no Ray cluster accepts jobs at {address!r}: {_reason(error)}") from error


def as_yaml(config: Any) -> str:
    from omegaconf import OmegaConf

    return yaml.safe_dump(OmegaConf.to_container(config, resolve=True), sort_keys=False)
