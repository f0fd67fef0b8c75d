"""The model card of a run's saved model."""

from __future__ import annotations

from pathlib import Path

import yaml

from bandpo.runs.config import RunConfig

CARD = "README.md"


def write_card(folder: Path, config: RunConfig) -> None:
    """Write README.md into the folder of a saved model: its base model, task and clip rule."""
    base = config.model.path
    tags = ["trl", "grpo", "bandpo", *(["lora"] if config.lora is not None else [])]
    head = {"library_name": "transformers" if config.lora is None else "peft", "tags": tags}
    if base is not None and _on_hub(base):
        head["base_model"] = base
    rule = ", ".join(f"{key} {value}" for key, value in config.rule.settings.items() if key != "name")
    name = config.rule.settings["name"]
    text = f"""---
{yaml.safe_dump(head, sort_keys=False).strip()}
---

# {config.description or "A model trained with BandPO"}

Trained by GRPO ([TRL](https://github.com/huggingface/trl)) with verifiable rewards, by `bandpo train`.

| | |
|---|---|
| trained from | {"random weights" if base is None else f"`{base}`"} |
| task | {config.task.label} |
| clip rule | `{name}`{f" ({rule})" if rule else ""} |
| the rule as an object | `{config.rule.clip_rule}` |
| seed | {config.seed} |

The complete settings are in `config.yaml` of the run directory. The rule `band` is the probability-aware trust region
of [BandPO](https://arxiv.org/abs/2603.04918); `trl` is TRL's own loss.
"""
    (folder / CARD).write_text(text, encoding="utf-8")


def _on_hub(path: str) -> bool:
    """Whether a model's path is a name on the hub: owner/name."""
    return path.count("/") == 1 and ":" not in path and not path.startswith((".", "/", "~"))
