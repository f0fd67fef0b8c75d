"""Train with fixed rollouts and write the metrics: run under `accelerate launch` by test_processes.py."""

import json
import sys

import numpy as np
from accelerate import PartialState
from datasets import Dataset

from bandpo.models import scratch_model
from bandpo.training import BandGRPOConfig, BandGRPOTrainer

GLOBAL_BATCH = 16


def reward(completions, **_):
    return [float(sum(c in "02468" for c in text)) for text in completions]


def rollout(prompts, trainer):
    """Completions that depend on the place in the global batch alone, so that every number of processes has them."""
    first = trainer.accelerator.process_index * len(prompts)
    prompt_ids = [trainer.processing_class(prompt)["input_ids"] for prompt in prompts]
    completions = []
    for i in range(len(prompts)):
        dice = np.random.default_rng([trainer._step, first + i])
        completions.append(dice.integers(3, 98, size=dice.integers(2, 9)).tolist())
    return {"prompt_ids": prompt_ids, "completion_ids": completions, "logprobs": None}


def main(folder, loss_type):
    state = PartialState(cpu=True)
    model, tokenizer = scratch_model(hidden_size=32, layers=2, heads=2, positions=64, seed=0)
    args = BandGRPOConfig(
        output_dir=folder,
        per_device_train_batch_size=GLOBAL_BATCH // state.num_processes,
        generation_batch_size=GLOBAL_BATCH,
        num_generations=4,
        num_iterations=3,
        loss_type=loss_type,
        max_steps=9,
        learning_rate=2e-2,
        rule={"name": "band", "radius": 0.002},
        beta=0.0,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        disable_tqdm=True,
    )
    trainer = BandGRPOTrainer(
        model=model,
        reward_funcs=reward,
        args=args,
        train_dataset=Dataset.from_list([{"prompt": f"{i}+{i}="} for i in range(16)]),
        processing_class=tokenizer,
        rollout_func=rollout,
    )
    trainer.train()
    if state.is_main_process:
        rows = [row for row in trainer.state.log_history if "loss" in row]
        weights = {name: p.double().norm().item() for name, p in trainer.model.named_parameters()}
        with open(f"{folder}.json", "w", encoding="utf-8") as file:
            json.dump({"processes": state.num_processes, "rows": rows, "weights": weights}, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
