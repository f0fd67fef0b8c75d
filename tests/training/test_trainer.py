"""BandGRPOTrainer against stock GRPOTrainer, and the settings it refuses."""

import copy
import warnings
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from bandpo import IPO, Band, Clip, DisagreementBand, policy_loss
from bandpo.core.frameworks import clip_range
from bandpo.models import load_model
from bandpo.runs.build import RecipeTrainer
from bandpo.training import BandGRPOConfig, BandGRPOTrainer
from bandpo.training.config import can_clip, clip_outlook
from bandpo.training.durable import TrainingDivergedError
from bandpo.training.trainer import _check_settings
from helpers import QUIET_ON_CPU


def reward(completions, **_):
    return [float(sum(c in "02468" for c in text)) for text in completions]


def settings(path, **changes):
    return {
        "output_dir": str(path),
        "per_device_train_batch_size": 4,
        "generation_batch_size": 16,
        "num_generations": 4,
        "max_completion_length": 8,
        "max_steps": 12,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "no",
        **QUIET_ON_CPU,
        "seed": 3,
        **changes,
    }


DATA = Dataset.from_list([{"prompt": f"{i}+{i}="} for i in range(16)])


class Recorded:
    """Keeps the loss and the gradients of each micro-batch."""

    def training_step(self, *args, **kwargs):
        loss = super().training_step(*args, **kwargs)
        gradients = [p.grad.clone() for p in self.model.parameters() if p.grad is not None]
        self.__dict__.setdefault("steps", []).append((loss.detach().clone(), gradients))
        return loss


class StockTrainer(Recorded, GRPOTrainer):
    pass


class OurTrainer(Recorded, BandGRPOTrainer):
    pass


def run(trainer_class, config, tiny, **kwargs):
    model, tokenizer = copy.deepcopy(tiny[0]), tiny[1]
    trainer = trainer_class(
        model=model, reward_funcs=reward, args=config, train_dataset=DATA, processing_class=tokenizer, **kwargs
    )
    trainer.train()
    return trainer


@pytest.mark.slow
@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dr_grpo", "dapo"])
@pytest.mark.parametrize("epsilons", [(0.2, 0.28), (0.03, 0.07)])
def test_constant_bounds_equal_the_stock_trainer_bit_for_bit(tmp_path, tiny, loss_type, epsilons):
    extra = {"loss_type": loss_type, "num_iterations": 2}
    low, high = epsilons
    stock = run(StockTrainer, GRPOConfig(**settings(tmp_path / "a", epsilon=low, epsilon_high=high, **extra)), tiny)
    ours = run(
        OurTrainer,
        BandGRPOConfig(**settings(tmp_path / "b", rule={"name": "clip", "low": low, "high": high}, **extra)),
        tiny,
    )
    assert len(ours.steps) == len(stock.steps) == 12
    for (loss, gradients), (stock_loss, stock_gradients) in zip(ours.steps, stock.steps, strict=True):
        assert torch.equal(loss, stock_loss)
        assert len(gradients) == len(stock_gradients) > 0
        assert all(torch.equal(a, b) for a, b in zip(gradients, stock_gradients, strict=True))
    clipped = [row["clip_ratio/region_mean"] for row in stock.state.log_history if "clip_ratio/region_mean" in row]
    assert max(clipped) > 0, "the comparison should meet clipped tokens"
    assert clipped == [
        row["clip_ratio/region_mean"] for row in ours.state.log_history if "clip_ratio/region_mean" in row
    ]


@pytest.mark.slow
def test_band_reaches_the_loss_and_the_metrics(tmp_path, tiny):
    seen = []

    class Watched(OurTrainer):
        def _compute_loss(self, model, inputs):
            loss = super()._compute_loss(model, inputs)
            with torch.no_grad():
                ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
                mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
                logps, _, _ = self._get_per_token_logps_and_entropies(
                    model, ids, mask, inputs["completion_ids"].shape[1]
                )
            seen.append((loss.item(), logps, {k: v for k, v in inputs.items() if torch.is_tensor(v)}))
            return loss

    rule = Band(3e-4)
    trainer = run(
        Watched,
        BandGRPOConfig(**settings(tmp_path, rule={"radius": 3e-4}, loss_type="bnpo", num_iterations=2)),
        tiny,
    )
    assert trainer.rule == rule
    logged = [row for row in trainer.state.log_history if "band/clip_fraction" in row]
    assert max(row["band/clip_fraction"] for row in logged) > 0
    for (loss, logps, inputs), row in zip(seen, logged, strict=True):
        expected = policy_loss(
            logps,
            inputs["old_per_token_logps"],
            inputs["advantages"],
            inputs["completion_mask"],
            rule=rule,
            aggregation="token-mean",
        )
        assert loss == pytest.approx(expected.loss.item(), rel=1e-5, abs=1e-6)
        for name, value in expected.metrics.items():
            assert row[f"band/{name}"] == pytest.approx(value.item(), rel=1e-4, abs=1e-6)
        assert row["band/clip_fraction"] == pytest.approx(row["clip_ratio/region_mean"], abs=1e-6)


@pytest.mark.slow
def test_epsilons_are_restored(tmp_path, tiny):
    trainer = run(BandGRPOTrainer, BandGRPOConfig(**settings(tmp_path, max_steps=2)), tiny)
    assert (trainer.epsilon_low, trainer.epsilon_high) == (0.2, 0.2)


@pytest.mark.slow
def test_any_rule_object(tmp_path, tiny):
    config = BandGRPOConfig(**settings(tmp_path, max_steps=1))
    trainer = run(BandGRPOTrainer, config, tiny, rule=Clip(0.1, 0.1))
    assert trainer.rule == Clip(0.1, 0.1)
    assert trainer.args.rule == repr(Clip(0.1, 0.1)), "what is logged is what is trained"
    assert config.rule == {"name": "band"}, "the caller's own configuration is left alone"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rule": {"name": "bnd"}}, ["'bnd'", "did you mean 'band'"]),
        ({"rule": {"radius": -1.0}}, ["radius", "-1"]),
        ({"rule": {"divergence": "kll"}}, ["'kll'", "kl"]),
        ({"rule": {"cap": 0.5}}, ["cap", "0.5"]),
        ({"epsilon_high": 0.28}, ["epsilon_high=0.28", "'band'", "{'name': 'clip', 'low': 0.2, 'high': 0.28}"]),
        ({"rule": {"name": "clip", "radius": 0.1}}, ["'clip' has no option 'radius'"]),
        ({"dynamic_sampling": 2}, ["dynamic_sampling=2", "class MyTrainer(DynamicSampling, BandGRPOTrainer)"]),
        ({"anchor": "smapler"}, ["'smapler'", "did you mean 'sampler'"]),
        ({"anchor": "sampler"}, ["use_vllm=True"]),
        ({"loss_type": "cispo", "rule": {"name": "none"}}, ["'cispo'", "dapo"]),
        ({"loss_type": "sapo"}, ["'sapo'"]),
        ({"importance_sampling_level": "sequence"}, ["'sequence'", "'token'"]),
        ({"delta": 2.0}, ["delta", "2.0", 'rule={"cap": 2.0}']),
    ],
)
def test_settings_that_would_be_silently_wrong(tmp_path, tiny, changes, words):
    with pytest.raises(ValueError) as caught:
        BandGRPOTrainer(
            model=tiny[0],
            reward_funcs=reward,
            args=BandGRPOConfig(**settings(tmp_path, **changes)),
            train_dataset=DATA,
            processing_class=tiny[1],
        )
    for word in words:
        assert word in str(caught.value)


def test_warns_where_nothing_can_clip(tmp_path, tiny):
    def build(**changes):
        return BandGRPOTrainer(
            model=tiny[0],
            reward_funcs=reward,
            args=BandGRPOConfig(**settings(tmp_path, **changes)),
            train_dataset=DATA,
            processing_class=tiny[1],
        )

    with pytest.warns(UserWarning, match="^1 update follows each rollout: every ratio is 1 and no clip rule can act"):
        build(gradient_accumulation_steps=4)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        build()


def test_what_can_clip_and_how_it_is_said():
    def args(**changes):
        settings = {"gradient_accumulation_steps": 4, "steps_per_generation": 4, "num_iterations": 1, "anchor": "old"}
        return SimpleNamespace(
            **{**settings, "use_vllm": True, "vllm_importance_sampling_correction": True, **changes}
        )

    # vLLM's correction multiplies the loss; the ratio that is clipped is still to the policy's own log-probs.
    assert not can_clip(args())
    assert clip_outlook(args()) == "1 update follows each rollout: every ratio is 1 and no clip rule can act"
    assert clip_outlook(args(num_iterations=2)).startswith(
        "2 updates follow each rollout: once the weights have moved"
    )
    assert can_clip(args(anchor="sampler"))
    assert "with ratios relative to the sampler's log-probs: the clip rule can act" in clip_outlook(
        args(anchor="sampler")
    )


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"top_p": 0.8}, "top_p=0.8"),
        ({"top_k": 20, "min_p": 0.05}, "top_k=20, min_p=0.05"),
        ({"repetition_penalty": 1.1}, "repetition_penalty=1.1"),
        ({"generation_kwargs": {"top_p": 0.9}}, "top_p=0.9"),
        ({"generation_kwargs": {"temperature": 0.5}}, "temperature=0.5"),
    ],
)
def test_sampling_that_is_not_the_policys_is_said_before_training(tmp_path, tiny, options, named):
    def build(**changes):
        return BandGRPOTrainer(
            model=tiny[0],
            reward_funcs=reward,
            args=BandGRPOConfig(**settings(tmp_path, **changes)),
            train_dataset=DATA,
            processing_class=tiny[1],
        )

    with pytest.warns(UserWarning, match=f"truncated or reweighted \\({named}\\).*remove these options"):
        trainer = build(**options)
    trainer.args.anchor, trainer.args.use_vllm = "sampler", True
    trainer.args.vllm_importance_sampling_correction = False
    with pytest.raises(ValueError, match=f"truncated or reweighted \\({named}\\).*allowed: sampling from the policy"):
        _check_settings(trainer)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        build(top_p=1.0, top_k=0, temperature=0.7, generation_kwargs={"temperature": 0.7})


def test_anchor_sampler_centres_the_region_on_the_samplers_log_probs():
    from bandpo.training.trainer import _sampler_logps

    sampling = torch.tensor([[-1.0, float("nan"), -3.0]])
    old = torch.tensor([[-1.5, -2.5, -3.5]])
    alone = _sampler_logps({"sampling_per_token_logps": sampling})
    torch.testing.assert_close(alone, sampling, rtol=0, atol=0, equal_nan=True)
    mixed = _sampler_logps({"sampling_per_token_logps": sampling, "old_per_token_logps": old})
    assert torch.equal(mixed, torch.tensor([[-1.0, -2.5, -3.0]]))


def test_the_three_edges_between_the_policies_are_measured_apart():
    from bandpo import Tokens
    from bandpo.training.trainer import _distances

    current, old = torch.tensor([[-1.0, -2.0, -3.0]]), torch.tensor([[-1.5, -2.5, -3.0]])
    sampler = torch.tensor([[-1.25, float("nan"), -4.0]])
    tokens = Tokens(sampler, torch.ones(1, 1), torch.tensor([[1, 1, 0]]), sampling_logps=sampler)
    found = {name: value.item() for name, value in _distances(current, tokens, old, torch.float64).items()}
    assert found == {"sampler_distance": 0.25, "update_distance": 1.0, "total_distance": 0.25}
    first = {name: value.item() for name, value in _distances(current, tokens, None, torch.float64).items()}
    assert first == {"sampler_distance": 0.25, "update_distance": 0.0, "total_distance": 0.25}
    assert _distances(current, Tokens(old, torch.ones(1, 1), torch.ones(1, 3)), old, torch.float64) == {}


class Poisoned:
    """Every weight is NaN after the first update."""

    def training_step(self, *args, **kwargs):
        loss = super().training_step(*args, **kwargs)
        with torch.no_grad():
            next(iter(self.model.parameters())).fill_(float("nan"))
        return loss


@pytest.mark.slow
def test_nan_log_probs_stop_the_run_of_a_recipe(tmp_path, tiny):
    class Guarded(Poisoned, RecipeTrainer):
        pass

    with pytest.raises(TrainingDivergedError, match="NaN log-prob"):
        run(Guarded, BandGRPOConfig(**settings(tmp_path)), tiny)


def test_nan_metrics_do_not_end_the_run_of_a_drop_in_trainer(tmp_path, tiny):
    class DropIn(Poisoned, BandGRPOTrainer):
        pass

    trainer = run(DropIn, BandGRPOConfig(**settings(tmp_path, max_steps=3)), tiny)
    assert trainer.state.global_step == 3
    logged = [row["band/divergence"] for row in trainer.state.log_history if "band/divergence" in row]
    assert logged[1:] == [None, None], "TRL writes NaN as None"


def test_the_drop_in_trainer_replaces_the_loss_and_nothing_of_a_run():
    own = {name for name, value in vars(BandGRPOTrainer).items() if callable(value)}
    replaced = {name for name in own if hasattr(GRPOTrainer, name)} - {"__init__"}
    assert replaced == {
        "_compute_loss", "_get_per_token_logps_and_entropies", "_generate_and_score_completions",
        "_save_checkpoint", "_load_callback_state",  # to which a controller's state is added
    }  # fmt: skip
    assert BandGRPOTrainer.__mro__[1] is GRPOTrainer


@dataclass(frozen=True)
class ByEntropy(Band):
    needs = frozenset({"old_entropy", "groups"})

    def radii(self, tokens):
        seen.append((tokens.old_entropy, tokens.groups))
        low, high = super().radii(tokens)
        return low * (0.1 + tokens.old_entropy), high * (0.1 + tokens.old_entropy)


seen = []


@pytest.mark.slow
@pytest.mark.parametrize(
    "rule", [ByEntropy(1e-5), IPO(1e-4), DisagreementBand(1e-5)], ids=lambda rule: type(rule).__name__
)
@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_rules_with_needs_get_them_and_hold_as_in_our_own_loss(tmp_path, tiny, rule, beta):
    """Entropy is the old policy's, also with a reference model; gradients are those of bandpo.policy_loss."""
    seen.clear()
    checked = []

    class Watched(BandGRPOTrainer):
        def _compute_loss(self, model, inputs):
            loss = super()._compute_loss(model, inputs)
            if self.state.global_step % 4 == 3 and not self.beta:  # the rollout's last update, where ratios differ
                tokens = self._context(inputs, inputs["old_per_token_logps"])
                logps = self._logps.clone().requires_grad_()
                ours = policy_loss(
                    logps, tokens.old_logps, tokens.advantages, tokens.mask, rule=self.rule, aggregation="token-mean",
                    old_entropy=tokens.old_entropy, groups=tokens.groups, disagreement=tokens.disagreement,
                )  # fmt: skip
                low, high = clip_range(self.rule, tokens, logps)
                ratio = (logps - tokens.old_logps).exp()
                each = -torch.minimum(ratio * tokens.advantages, ratio.clamp(1 - low, 1 + high) * tokens.advantages)
                theirs = (each * tokens.mask).sum() / tokens.mask.sum()
                gradients = [torch.autograd.grad(x, logps)[0] for x in (theirs, ours.loss)]
                torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-8)
                checked.append(float(ours.metrics["clip_fraction"]))
            return loss

    config = BandGRPOConfig(**settings(tmp_path, max_steps=8, beta=beta))
    tiny[0].save_pretrained(tmp_path / "model")  # TRL reads the reference model from where the model came from
    tiny[1].save_pretrained(tmp_path / "model")
    trainer = run(Watched, config, load_model(str(tmp_path / "model"), "float32"), rule=rule)
    assert trainer.state.global_step == 8
    if isinstance(rule, ByEntropy):
        assert all(entropy is not None and float(entropy.min()) >= 0 for entropy, _ in seen)
        assert {tuple(groups.shape[1:]) for _, groups in seen} == {(1,)}
        for row in trainer.state.log_history[:-1]:
            assert row["band/clip_fraction"] == pytest.approx(row["clip_ratio/region_mean"], abs=1e-6)
    if not beta:
        assert checked
        assert max(checked) > 0


def test_a_need_that_trl_cannot_meet_is_refused_at_start(tmp_path, tiny):
    class BySampler(Band):
        needs = frozenset({"sampling_logps"})

    with pytest.raises(ValueError, match=r"BySampler needs sampling_logps: TRL's.*use_vllm=True"):
        run(BandGRPOTrainer, BandGRPOConfig(**settings(tmp_path, max_steps=1)), tiny, rule=BySampler())
