"""Bands in other frameworks, against stand-ins with the signatures of their releases.

Recorded from the sources of prime-rl (trainer/rl/loss.py), slime (backends/megatron_utils/loss.py and
utils/ppo_utils.py) and NeMo-RL (algorithms/loss/loss_functions.py) in November 2026. Each stand-in clamps as its
original does; the oracle is bandpo.policy_loss. They need no checkout, and their signatures are newer than the
releases of tests_frameworks, which with tests_verl has the originals.
"""

from __future__ import annotations

import copy
import importlib
import json
import math
import pickle
import sys
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace

import pytest
import torch
import yaml
from torch import Tensor
from typer.testing import CliRunner

import bandpo
from bandpo.cli.launch import app
from bandpo.core.frameworks import clip_range
from bandpo.core.registry import RULES
from bandpo.core.tokens import Tokens
from bandpo.integrations import verl_data, verl_launch
from bandpo.integrations.common import clip_metrics, read_rule
from bandpo.integrations.verl_main import deaths

BATCH, LENGTH = 5, 16
RULE = {"name": "band", "radius": [0.02, 0.08], "divergence": "kl", "cap": 6.0}
OURS = bandpo.Band(radius=(0.02, 0.08), cap=6.0)


def batch(seed: int = 0) -> SimpleNamespace:
    random = torch.Generator().manual_seed(seed)
    old = -torch.rand(BATCH, LENGTH, generator=random).pow(3) * 8
    new = (old + 0.8 * torch.randn(BATCH, LENGTH, generator=random)).clamp(max=-1e-4)
    mask = torch.arange(LENGTH) < torch.tensor([LENGTH, 2, 9, LENGTH, 5])[:, None]
    advantages = torch.randn(BATCH, LENGTH, generator=random)
    return SimpleNamespace(old=old, new=new.requires_grad_(), mask=mask, advantages=advantages)


def expected(data: SimpleNamespace, rule=OURS, aggregation="seq-mean-token-sum", **options) -> tuple[Tensor, Tensor]:
    loss = bandpo.policy_loss(data.new, data.old, data.advantages, data.mask, rule, aggregation, **options).loss
    return loss.detach(), torch.autograd.grad(loss, data.new)[0]


def agree(loss: Tensor, data: SimpleNamespace, scale: float = 1.0, **options) -> None:
    (gradient,) = torch.autograd.grad(loss, data.new)
    want_loss, want_gradient = expected(data, **options)
    torch.testing.assert_close(loss.detach(), want_loss * scale, rtol=3e-6, atol=1e-7)
    torch.testing.assert_close(gradient, want_gradient * scale, rtol=3e-6, atol=1e-7)


def clipped(log_ratio: Tensor, advantages: Tensor, low, high) -> Tensor:
    """What all of them compute: PPO's surrogate, a token."""
    ratio = log_ratio.exp()
    return torch.maximum(-ratio * advantages, -ratio.clamp(1 - low, 1 + high) * advantages)


@pytest.fixture
def stand_in(monkeypatch):
    """Put a module in place of a framework that is not installed, and import our module freshly against it."""

    def install(ours: str, **modules: dict) -> ModuleType:
        for path, attributes in modules.items():
            parts = path.split("__")
            for end in range(1, len(parts) + 1):
                name = ".".join(parts[:end])
                if name not in sys.modules:
                    monkeypatch.setitem(sys.modules, name, ModuleType(name))
            for key, value in attributes.items():
                setattr(sys.modules[".".join(parts)], key, value)
        monkeypatch.delitem(sys.modules, f"bandpo.integrations.{ours}", raising=False)
        return importlib.import_module(f"bandpo.integrations.{ours}")

    return install


# The shared code.


def test_a_rule_is_read_from_any_mapping():
    assert read_rule(None) == read_rule({}) == bandpo.Band()
    assert read_rule(RULE) == OURS
    assert read_rule({"radius": (0.02, 0.08)}) == bandpo.Band(radius=(0.02, 0.08))
    assert read_rule({"name": "clip", "high": 0.28}) == bandpo.Clip(0.2, 0.28)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (0.05, "rule is 0.05; allowed: a mapping"),
        ({"raduis": 0.05}, r"'band' has no option 'raduis' \(did you mean 'radius'\?\)"),
        ({"name": "bnad"}, r"unknown clip rule 'bnad' \(did you mean 'band'\?\)"),
        ({"radius": 0}, "radius must be > 0"),
    ],
)
def test_a_wrong_rule_is_one_sentence(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        read_rule(options)


def test_offsets_give_the_bounds_back():
    old = batch().old
    for rule in (OURS, bandpo.Clip(0.2, 0.28), bandpo.DCPO(), bandpo.NoClip()):
        low, high = clip_range(rule, old)
        bounds = rule.bounds(old)
        torch.testing.assert_close(1 - low, bounds.lower, rtol=0, atol=2**-24)
        assert torch.equal(1 + high, bounds.upper)
    low, high = clip_range(bandpo.Clip(0.2, 0.28), old)
    assert torch.equal(1 - low, torch.full_like(old, 1 - 0.2))


def test_masked_log_probs_may_hold_anything():
    data = batch()
    low, high = clip_range(OURS, Tokens(data.old.masked_fill(~data.mask, 7.0), mask=data.mask))
    assert low.isfinite().all()
    assert high.isfinite().all()
    assert torch.equal(high[data.mask], clip_range(OURS, data.old)[1][data.mask])


def test_metrics_are_those_of_the_loss():
    data = batch()
    metrics = clip_metrics(data.new, Tokens(data.old, data.advantages, data.mask), OURS, "x/")
    want = bandpo.policy_loss(data.new, data.old, data.advantages, data.mask, OURS).metrics
    assert metrics == {f"x/{name}": value.item() for name, value in want.items()}
    assert metrics["x/clip_fraction"] > 0


# prime-rl: one sequence a call, returns a sum.


@dataclass
class LossInputs:
    trainer_logprobs: Tensor
    inference_logprobs: Tensor
    ref_logprobs: Tensor | None
    advantages: Tensor
    loss_mask: Tensor
    loss_weights: Tensor | None = None


@dataclass
class LossOutputs:
    loss: Tensor
    metrics: dict[str, Tensor]


@dataclass
class CustomLoss:
    """How prime-rl calls a custom loss since #3526."""

    fn: Callable[..., LossOutputs]
    kwargs: dict

    def loss(self, inputs: LossInputs) -> LossOutputs:
        return self.fn(inputs, **self.kwargs)


@pytest.mark.parametrize("weighted", [False, True])
def test_prime_rl(stand_in, weighted):
    module = stand_in("prime_rl", prime_rl__trainer__rl__loss={"LossOutputs": LossOutputs})
    data = batch(1)
    weights = torch.rand(BATCH, LENGTH) if weighted else None
    rows = [
        LossInputs(
            data.new[i], data.old[i], None, data.advantages[i], data.mask[i], None if weights is None else weights[i]
        )
        for i in range(BATCH)
    ]
    loss = CustomLoss(module.band_loss, {"rule": RULE, "dual_clip": 4.0}).loss
    outputs = [loss(row) for row in rows]
    agree(sum(output.loss for output in outputs), data, scale=BATCH, dual_clip=4.0, weights=weights)
    assert all(value.dim() == 0 for output in outputs for value in output.metrics.values())
    assert {"band/clip_fraction", "band/divergence"} <= outputs[0].metrics.keys()


def test_prime_rl_takes_a_sequence_without_trained_tokens(stand_in):
    module = stand_in("prime_rl", prime_rl__trainer__rl__loss={"LossOutputs": LossOutputs})
    data = batch()
    output = module.band_loss(
        LossInputs(data.new[0], data.old[0], None, data.advantages[0], torch.zeros(LENGTH, dtype=torch.bool))
    )
    assert output.loss == 0
    assert torch.autograd.grad(output.loss, data.new)[0].eq(0).all()
    assert all(value.isfinite() for value in output.metrics.values())


# slime: packed responses, the loss takes argparse's namespace.


def slime_policy_loss(args, batch, logits, sum_of_sample_mean):
    old = batch["rollout_log_probs"] if args.use_rollout_logprobs else batch.get("log_probs")
    old = torch.cat(old) if old else logits.detach()
    loss = clipped(logits - old, torch.cat(batch["advantages"]), args.eps_clip, args.eps_clip_high)
    return sum_of_sample_mean(loss), {"pg_clipfrac": torch.zeros(())}


@pytest.mark.parametrize("anchor", ["log_probs", "rollout_log_probs"])
def test_slime(stand_in, anchor):
    loss = {"policy_loss_function": slime_policy_loss}
    module = stand_in("slime", slime__backends__megatron_utils__loss=loss)
    data = batch(2)
    packed = {anchor: [row[m] for row, m in zip(data.old, data.mask, strict=True)]}
    packed["advantages"] = [row[m] for row, m in zip(data.advantages, data.mask, strict=True)]
    args = Namespace(
        use_rollout_logprobs=anchor == "rollout_log_probs",
        advantage_estimator="grpo",
        eps_clip=0.2,
        eps_clip_high=0.2,
        bandpo_rule=RULE,
    )
    before = copy.copy(args)
    result, _ = module.band_loss_function(args, packed, data.new[data.mask], torch.sum)
    agree(result, data, scale=BATCH)
    assert args == before
    args.advantage_estimator = "gspo"
    with pytest.raises(ValueError, match="advantage_estimator is 'gspo', which has one ratio per sequence"):
        module.band_loss_function(args, packed, data.new[data.mask], torch.sum)


# NeMo-RL: a loss object whose tensors are one token longer than the ratios.


class ClippedPGLossFn:
    def __init__(self, cfg, use_fused_linear_logprobs=False):
        self.ratio_clip_min, self.ratio_clip_max = cfg.ratio_clip_min, cfg.ratio_clip_max
        for name in ("disable_ppo_ratio", "sequence_level_importance_ratios", "force_on_policy_ratio", "use_cispo"):
            setattr(self, name, getattr(cfg, name, False))

    def __call__(self, next_token_logprobs, data, global_valid_seqs, global_valid_toks):
        mask = data["token_mask"][:, 1:] * data["sample_mask"].unsqueeze(-1)
        log_ratio = next_token_logprobs - data["prev_logprobs"][:, 1:]
        loss = clipped(log_ratio, data["advantages"][:, 1:], self.ratio_clip_min, self.ratio_clip_max)
        return (loss * mask).sum() / global_valid_toks, {}


def test_nemo_rl(stand_in):
    module = stand_in("nemo_rl", nemo_rl__algorithms__loss={"ClippedPGLossFn": ClippedPGLossFn})
    cfg = SimpleNamespace(ratio_clip_min=0.2, ratio_clip_max=0.2)
    loss_fn = pickle.loads(pickle.dumps(module.BandPGLossFn(cfg, rule=RULE)))
    data = batch(3)

    def shifted(tensor: Tensor) -> Tensor:
        return torch.cat([tensor.new_ones(BATCH, 1), tensor], 1)

    samples = torch.tensor([1.0, 1.0, 0.0, 1.0, 1.0])
    fields = {
        "prev_logprobs": shifted(data.old),
        "advantages": shifted(data.advantages),
        "token_mask": shifted(data.mask.float()),
        "sample_mask": samples,
    }
    data.mask = data.mask & samples.bool().unsqueeze(-1)
    loss, _ = loss_fn(data.new, fields, torch.tensor(4), data.mask.sum())
    agree(loss, data, aggregation="token-mean")
    assert (loss_fn.ratio_clip_min, loss_fn.ratio_clip_max) == (0.2, 0.2)
    with pytest.raises(ValueError, match="use_cispo is true"):
        module.BandPGLossFn(SimpleNamespace(**vars(cfg), use_cispo=True))


# What `bandpo launch` does without verl.


def launch(*arguments: str):
    return CliRunner().invoke(app, list(arguments))


def test_launch_lists_what_there_is():
    result = launch("verl")
    assert result.exit_code == 0
    for name in ("qwen2.5-3b-instruct", "r1-distill-llama-8b", "band-kl", "dapo-band-tv", "clip-higher"):
        assert name in result.output


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["qwen2.5-3b-instruct"], "not of the form MODEL/METHOD"),
        (["qwen2.5-3b-instruct/band-lk"], "unknown method 'band-lk' (did you mean 'band-kl'?)"),
        (["qwen2.5-3b/band-kl"], "unknown base_model 'qwen2.5-3b'"),
        (["qwen2.5-7b/grpo", "--cluster", "multi"], "unknown cluster 'multi' (did you mean 'multi-node'?)"),
        (["qwen2.5-7b/grpo", "rule.radius"], "not of the form key=value"),
    ],
)
def test_launch_names_what_is_wrong(arguments, sentence):
    result = launch("verl", *arguments)
    assert isinstance(result.exception, ValueError)
    assert sentence in str(result.exception)


def test_the_command_is_verls():
    chosen = verl_launch.recipe_overrides("qwen2.5-7b/band-kl", "multi-node")
    words = verl_launch.command([*chosen, verl_launch.expand("rule.radius=0.1")])
    assert words[:2] == ["-m", "bandpo.integrations.verl_main"]
    assert words[-4:] == [
        "base_model=qwen2.5-7b",
        "method=band-kl",
        "cluster=multi-node",
        "++actor_rollout_ref.actor.policy_loss.rule.radius=0.1",
    ]


def test_every_rule_overlay_holds_a_rule():
    for name in verl_launch.choices("rule"):
        overlay = yaml.safe_load((verl_launch.RECIPES / "rule" / f"{name}.yaml").read_text())
        assert overlay["loss_mode"] == "bandpo"
        read_rule(overlay["rule"])


def test_verl_data_writes_verls_schema(tmp_path):
    import pyarrow.parquet

    source = tmp_path / "aime.jsonl"
    source.write_text(json.dumps({"question": "1 + 1?", "answer": "2"}) + "\n")
    result = launch("verl-data", f"aime24={source}", "--output", str(tmp_path / "out"))
    assert result.exit_code == 0, result.exception
    assert "1 problems" in result.output
    (row,) = pyarrow.parquet.read_table(tmp_path / "out" / "aime24.parquet").to_pylist()
    assert row == {
        "data_source": "aime24",
        "prompt": [{"role": "user", "content": verl_data.template_text("boxed").replace("{question}", "1 + 1?")}],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": "2"},
        "extra_info": {"index": 0, "split": "test"},
    }


@pytest.mark.parametrize(
    ("name", "split", "row"),
    [
        ("gsm8k", "train", {"question": "1 + 1?", "answer": "two #### 2"}),
        ("math500", "test", {"problem": "1 + 1?", "answer": "2"}),
        ("math", "train", {"problem": "1 + 1?", "solution": "\\boxed{2}", "level": "Level 4"}),
    ],
)
def test_verl_data_reads_the_split_to_train_on_where_there_is_one(monkeypatch, name, split, row):
    asked = []

    def read_hub(source, subsets, split, known):
        asked.append(split)
        return [row, {**row, "level": "Level 2"}]

    monkeypatch.setattr("bandpo.tasks.questions.read_hub", read_hub)
    problems = verl_data.read_problems(name)
    assert asked == [split]
    assert [problem.answer for problem in problems] == ["2"] * (1 if name == "math" else 2)


@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (2, 4)], ids=["no sequence", "no token", "all masked"])
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_bounds_and_metrics_without_a_token(rule, shape):
    def full(value: float) -> Tensor:
        return torch.full(shape, value)

    tokens = Tokens(
        full(-1.0), full(1.0), full(0.0), old_entropy=full(1.0), sampling_logps=full(-1.0),
        positions=full(0.0), groups=torch.zeros(shape[0], 1), disagreement=full(0.5),
    )  # fmt: skip
    one = rule()
    low, high = clip_range(one, tokens, full(-1.1))
    assert low.shape == high.shape == shape
    found = clip_metrics(full(-1.1), tokens, one, "")
    assert {name: value for name, value in found.items() if value} == {"ratio_max": 1.0, "ratio_min": 1.0}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_probability_rounded_to_one_leaves_the_metrics_finite(dtype):
    step = torch.finfo(dtype).eps / 4
    new, old = torch.tensor([[0.0, -step, 0.0]], dtype=dtype), torch.tensor([[-step, 0.0, -0.7]], dtype=dtype)
    tokens = Tokens(old, torch.tensor([[1.0, -1.0, -1.0]]), torch.ones(1, 3))
    found = clip_metrics(new, tokens, OURS, "")
    assert all(math.isfinite(value) for value in found.values())
    assert found["saturated_fraction"] == 1
    assert found["clip_fraction"] == 0


def test_only_deaths_that_nobody_asked_for_end_a_run_in_verl():
    def actor(state: str, cause: str | None) -> dict[str, object]:
        return {"State": state, "ActorClassName": "Worker", "Pid": 7, "DeathCause": cause}

    context = 'actor_died_error_context {{\n  error_message: "{}"\n  reason: {}\n}}\n'
    crash = "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR"
    leaves = "The actor is dead because its worker process has died. Worker exit type: INTENDED_USER_EXIT"
    dead = [
        actor("ALIVE", None),
        actor("DEAD", context.format("The actor is dead because it was killed by `ray.kill`.", "RAY_KILL")),
        actor("DEAD", context.format(leaves, "WORKER_DIED")),
        actor("DEAD", context.format(crash, "WORKER_DIED")),
        actor("DEAD", 'oom_context {\n  error_message: "out of memory"\n}\n'),
    ]
    assert deaths(dead) == [f"Worker (process 7) died: {crash}", "Worker (process 7) died: out of memory"]
