"""In the place of `bandpo train`: leaves what a run leaves, in a tenth of a second, and goes on where it was killed.

Its figures follow from the rule and the seed alone. A run fails whose rule's `high` is 9 unless a file `mended` lies
beside the study, and one waits after its third update while `hold` lies there.
"""

import json
import os
import random
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import yaml

from bandpo.runs.config import load_config
from bandpo.runs.run_dir import RunDirectory

# What checks the types of TRL's settings imports TRL, which takes seconds.
sys.modules["bandpo.runs.train_settings"] = SimpleNamespace(
    check_train_settings=lambda settings, _: settings, config_class=lambda _: None
)
command, recipe, *rest = sys.argv[1:]
assert command == "train"
assert rest[-1] == "--resume"
output = Path(rest[rest.index("--output") + 1])
config = load_config(recipe, rest[: rest.index("--output")])
settings = config.model_dump(mode="json")
run = RunDirectory(output)
study = next(p for p in output.parents if (p / "study.yaml").exists())
assert Path(config.model.path).parent == study / "initial"
assert config.warmup is None
with (study / "starts.log").open("a") as log:
    log.write(f"{output.relative_to(study)}\n")
if output.exists():
    run.check_config(settings)
    assert not run.finished(), "a finished run was started again"
else:
    output.mkdir(parents=True)
    run.config.write_text(yaml.safe_dump(settings, sort_keys=False))
    threads = int(os.environ["OMP_NUM_THREADS"])
    environment = {"python": "3", "packages": {}, "commit": None, "platform": "", "gpus": [], "cpu_threads": threads}
    run.environment.write_text(json.dumps(environment))
run.set_status("running")
if config.rule.settings.get("high") == 9 and not (study.parent / "mended").exists():
    run.set_status("failed", error="ValueError: too high")
    sys.exit("error: too high")
width = config.rule.settings.get("radius", config.rule.settings.get("high", 1.0))
steps = config.train["max_steps"]
done = len(run.metrics.read_text().splitlines()) if run.metrics.exists() else 0
for step in range(done + 1, steps + 1):
    dice = random.Random(f"{width} {config.seed} {step}")
    row = {"step": step, "entropy": dice.random(), "step_time": 0.5, "band/clip_fraction": 0.01 / width}
    if step % 2:
        row |= {"reward": step / steps + dice.random() / 10, "num_tokens": 100 * step}
    with run.metrics.open("a") as stream:
        stream.write(json.dumps(row) + "\n")
    while step == 3 and (study.parent / "hold").exists():
        time.sleep(0.05)
for when in ("before", "after") if config.eval else ():
    folder = run.evaluation(when)
    folder.mkdir(parents=True, exist_ok=True)
    dice = random.Random(f"{width} {config.seed} {when}")
    with (folder / "samples.jsonl").open("w") as stream:
        for _ in range(20):
            one = {"text": "", "tokens": 1, "truncated": False, "entropy": 0.1, "timed_out": False, "final": None}
            completions = [{**one, "reward": float(dice.random() < 0.5)} for _ in range(config.eval.samples)]
            stream.write(json.dumps({"question": "", "answer": "", "origin": "", "completions": completions}) + "\n")
    estimate = {"mean": 0.1, "low": 0.1, "high": 0.1}
    result = {"prompts": 20, "samples": config.eval.samples, "temperature": 1.0, "timeouts": 0}
    result["metrics"] = {"entropy": estimate}
    (folder / "result.json").write_text(json.dumps(result))
for folder in (run.checkpoints, run.model):
    folder.mkdir(exist_ok=True)
summary = {"steps": steps, "rollouts": steps // 2, "seconds": 0.1, "stopped_by": None, "before": None, "after": None}
run.summary.write_text(json.dumps(summary))
run.set_status("finished")
