"""A tiny Llama, a recipe cut down to it, and a rollout for it: what the tests of verl's workers share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_module
from tensordict import TensorDict
from verl.utils import tensordict_utils as tu
from verl.workers.utils.padding import left_right_2_no_padding

VOCABULARY, SEQUENCES, PROMPT, RESPONSE = 32, 8, 5, 12
MODEL = "actor_rollout_ref.model"
ACTOR = "actor_rollout_ref.actor"
ROLLOUT = "actor_rollout_ref.rollout"


def write_model(path: Path) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, max_position_embeddings=64, **shape)).save_pretrained(path)
    words = Tokenizer(WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0", eos_token="w1").save_pretrained(path)


def recipe(model_path: Path, *overrides: str) -> Any:
    """qwen2.5-3b-instruct/band-kl with the model, precision and batch sizes of a test."""
    small = [
        f"{MODEL}.path={model_path}",
        f"{MODEL}.use_remove_padding=false",
        f"{MODEL}.enable_gradient_checkpointing=false",
        f"+{MODEL}.override_config.attn_implementation=eager",
        f"{ACTOR}.strategy=fsdp2",
        f"{ACTOR}.use_dynamic_bsz=false",
        f"{ACTOR}.ppo_micro_batch_size_per_gpu=2",
        f"{ROLLOUT}.log_prob_micro_batch_size_per_gpu=2",
        f"{ACTOR}.use_torch_compile=false",
        f"{ACTOR}.optim.lr=0.01",
        f"+{ACTOR}.fsdp_config.mixed_precision={{param_dtype:fp32,reduce_dtype:fp32,buffer_dtype:fp32}}",
    ]
    with initialize_config_module("bandpo.recipes.verl", version_base=None):
        return compose("paper", overrides=[*small, *overrides])


def sequences() -> TensorDict:
    """Random sequences of several lengths with advantages, in the layout of verl's trainer; no log-probs yet."""
    random = torch.Generator().manual_seed(1)
    tokens = torch.randint(2, VOCABULARY, (SEQUENCES, PROMPT + RESPONSE), generator=random)
    lengths = torch.tensor([RESPONSE, 3, 7, RESPONSE, 1, 9, RESPONSE, 5])
    response_mask = (torch.arange(RESPONSE) < lengths[:, None]).long()
    attention_mask = torch.cat([torch.ones(SEQUENCES, PROMPT, dtype=torch.long), response_mask], 1)
    advantages = torch.randn(SEQUENCES, 1, generator=random).expand(-1, RESPONSE).contiguous()
    data = TensorDict(
        {
            "prompts": tokens[:, :PROMPT],
            "responses": tokens[:, PROMPT:],
            "input_ids": tokens,
            "attention_mask": attention_mask,
            "position_ids": attention_mask.cumsum(1) - 1,
            "response_mask": response_mask,
            "advantages": advantages,
        },
        batch_size=SEQUENCES,
    )
    data = left_right_2_no_padding(data)
    tu.assign_non_tensor(data, temperature=1.0, calculate_entropy=True, global_token_num=None)
    return data


def for_log_probs(data: TensorDict) -> TensorDict:
    data = data.clone()
    tu.assign_non_tensor(data, compute_loss=False)
    return data


def for_update(data: TensorDict, old_logps: torch.Tensor, epochs: int = 2, size: int = 4) -> TensorDict:
    """What the trainer hands to update_actor: minibatches of `size` sequences."""
    data = data.clone()
    data["old_log_probs"] = old_logps
    data["ref_log_prob"] = old_logps.clone()
    tu.assign_non_tensor(data, mini_batch_size=size, global_batch_size=size, epochs=epochs, seed=1)
    return data
