"""GRPO with TRL and Band: your own script, two class names changed.

pip install 'bandpo[train]'
python examples/trl_grpo.py --model Qwen/Qwen2.5-0.5B-Instruct --output out
"""

import argparse
import re

from datasets import Dataset

from bandpo.training import BandGRPOConfig, BandGRPOTrainer

parser = argparse.ArgumentParser()
parser.add_argument("--model", default="Qwen/Qwen2.5-0.5B-Instruct", help="a name on the hub, or a local directory")
parser.add_argument("--output", default="out")
parser.add_argument("--steps", type=int, default=200)
parser.add_argument("--rollout", type=int, default=64, help="completions sampled at a time")
parser.add_argument("--length", type=int, default=64, help="maximum tokens per completion")
parser.add_argument("--cpu", action="store_true", help="train on the CPU, in float32")
options = parser.parse_args()

problems = [{"prompt": f"What is {a} + {b}?", "answer": str(a + b)} for a in range(10, 60) for b in range(10, 60)]


def right(completions, answer, **_):
    """1 if the last number in the text is the right sum."""
    last = [(re.findall(r"\d+", text) or [""])[-1] for text in completions]
    return [float(number == wanted) for number, wanted in zip(last, answer, strict=True)]


args = BandGRPOConfig(
    output_dir=options.output,
    rule={"name": "band", "radius": 0.05},
    # 4 updates per rollout: with one, every ratio is 1 and no clip rule can act.
    generation_batch_size=options.rollout,
    per_device_train_batch_size=options.rollout // 4,
    num_generations=8,
    max_completion_length=options.length,
    max_steps=options.steps,
    learning_rate=1e-6,
    logging_steps=1,
    report_to=[],
    **({"use_cpu": True, "bf16": False, "gradient_checkpointing": False} if options.cpu else {}),
)
trainer = BandGRPOTrainer(
    model=options.model, reward_funcs=right, args=args, train_dataset=Dataset.from_list(problems)
)
trainer.train()
trainer.save_model()
for row in trainer.state.log_history[-5:]:
    print({key: row[key] for key in ("band/clip_fraction", "band/divergence", "entropy") if key in row})
