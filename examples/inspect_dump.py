"""Log the tokens of a loop, then see what each clip rule would have done to them.

python examples/inspect_dump.py tokens.jsonl
bandpo inspect tokens.jsonl                               # the same tables from the command line
"""

import json
import sys
from pathlib import Path

import torch

from bandpo import Band, Clip
from bandpo.report.dumps import read_log
from bandpo.report.inspection import inspect_log


def log_tokens(path, tokens, mask, old_logps, advantages, **columns):
    """Append a batch; tensors have the shape (B, T), advantages may have (B,). docs/inspect.md lists the columns."""
    columns["old_logps"] = old_logps
    with open(path, "a", encoding="utf-8") as file:
        for row in range(len(tokens)):
            line = {"schema": "bandpo.tokens/1", "tokens": tokens[row].tolist(), "mask": mask[row].tolist()}
            line |= {name: values[row].float().tolist() for name, values in columns.items()}
            line["advantages"] = advantages[row].tolist()
            file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    path = Path(sys.argv[1])
    torch.manual_seed(0)
    for _ in range(4):  # instead of your loop; log the last update of a rollout, where ratios are furthest from 1
        logits = 2 * torch.randn(64, 32, 50)
        old = logits.log_softmax(-1)
        new = (logits + 0.3 * torch.randn_like(logits)).log_softmax(-1)
        tokens = torch.distributions.Categorical(logits=old).sample()
        old_logps, logps = (x.gather(-1, tokens.unsqueeze(-1)).squeeze(-1) for x in (old, new))
        mask = torch.ones_like(tokens, dtype=torch.bool)
        log_tokens(path, tokens, mask, old_logps, torch.randn(64), logps=logps)

    rules = {"GRPO clip": Clip(0.2, 0.2), "Clip-Higher": Clip(0.2, 0.28), "Band": Band(radius=0.05)}
    found = inspect_log(read_log([path]), rules, reference="GRPO clip")
    for row in found.rules:
        fixed = "none does" if row.epsilon is None else f"1 +- {row.epsilon:.2f}"
        print(f"{row.rule:11}  clips {row.share:.2%}; the fixed clip that clips as many: {fixed}")
