"""Token logs that the tests of the page's token panel look at."""

import json
import math
import random

import numpy as np

from bandpo.training.batches import TokenBatch

NASTY = [
    "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "&amp;", " the", "\n", "\t", "é", "漢字", "🙂",
    "\u202e", "", "<|im_end|>",
]  # fmt: skip


def batch(rows=12, length=30, seed=0, groups=3, step=7):
    """A recorded batch with short completions, an advantage of 0, and log-probs near and at 0."""
    random_ = np.random.default_rng(seed)
    shape = (rows, length)
    old = -(random_.exponential(1.2, shape).astype(np.float32) ** 2)
    new = np.minimum(old + random_.normal(0, 0.35, shape), 0).astype(np.float32)
    old[0, :3], new[1, :3] = 0, 0
    new[2, :5] = old[2, :5]
    advantages = np.broadcast_to(random_.normal(size=(rows, 1)), shape).astype(np.float32).copy()
    advantages[rows - 1] = 0
    mask = random_.random((rows, 1)) * length + 3 > np.arange(length)
    texts = np.array([*NASTY, *(f" t{i}" for i in range(20))])
    return TokenBatch(
        step, texts, random_.integers(0, len(texts), shape).astype(np.int32), np.where(mask, new, 0),
        np.where(mask, old, 0), random_.exponential(1, shape).astype(np.float32), advantages, mask,
        random_.exponential(0.1, shape).astype(np.float32),
        np.array([f"What is {i}?" for i in range(groups)]), (np.arange(rows) % groups).astype(np.int32),
    )  # fmt: skip


def lines(path, completions=6, seed=1, **changes):
    """A file of bandpo.tokens/1 with all columns, lengths that differ, and prompts; None leaves a key out."""
    chance = random.Random(seed)
    with path.open("w") as file:
        for row in range(completions):
            length = chance.randrange(1, 40)
            old = [-(chance.expovariate(1) ** 2) for _ in range(length)]
            one = {
                "schema": "bandpo.tokens/1",
                "tokens": [chance.choice(NASTY) for _ in range(length)],
                "old_logps": old,
                "logps": [min(0.0, x + chance.gauss(0, 0.4)) for x in old],
                "sampling_logps": [min(0.0, x + chance.gauss(0, 0.01)) for x in old],
                "entropy": [chance.expovariate(1) for _ in range(length)],
                "old_entropy": [chance.expovariate(1) for _ in range(length)],
                "advantages": chance.choice([-1, 0.5, 0, math.pi]),
                "prompt": f"prompt {row % 2}",
            }
            file.write(json.dumps({key: value for key, value in (one | changes).items() if value is not None}) + "\n")
    return path
