"""verl's whole loop on the CPU, started by `bandpo launch verl --cluster cpu`: `make test-verl-loop`.

main_ppo on a local Ray, with its FSDP2 actor, its own vLLM server, weight sync, reward, validation and checkpoints.
What verl needs for that is in bandpo.integrations.verl_cpu. A launch takes minutes, so each has a hard time limit,
after which its processes are killed: verl itself may hang when a worker dies.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from bandpo.integrations.verl_launch import ON_CPU, command, recipe_overrides

SECONDS = 1200  # of one launch
BANDPO = [sys.executable, "-m", "bandpo"]
QUIET = {
    "HF_HUB_OFFLINE": "1",
    "PYTHONUNBUFFERED": "1",
    "RAY_DEDUP_LOGS": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "PYTHONPATH": os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")])),
}
ACTOR, ROLLOUT = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"
VANILLA = (
    f"{ACTOR}.policy_loss._target_=verl.workers.config.PolicyLossConfig",
    f"{ACTOR}.policy_loss.loss_mode=vanilla",
    f"~{ACTOR}.policy_loss.rule",
)
REWARD = """
def compute_score(data_source, solution_str, ground_truth, extra_info=None, **_):
    return sum(c in "02468" for c in solution_str) / 24
"""


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    """A tiny model with a chat template, data that `bandpo launch verl-data` prepared, and a reward."""
    from bandpo.models import scratch_model

    path = tmp_path_factory.mktemp("loop")
    model, tokenizer = scratch_model(hidden_size=64, layers=2, heads=2, positions=512, seed=0, initializer_range=0.2)
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    model.save_pretrained(path / "tiny")
    tokenizer.save_pretrained(path / "tiny")
    rows = [{"question": f"{a}+{b}", "answer": str(a + b)} for a in range(1, 9) for b in range(1, 9)]
    (path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (path / "reward.py").write_text(REWARD)
    (path / "loops.yaml").write_text("- {name: one_at_a_time, _target_: one_at_a_time.OneAtATime}")
    prepared = ["launch", "verl-data", "gsm8k=sums.jsonl", "--output", "data", "--template", "{question}="]
    subprocess.run([*BANDPO, *prepared], cwd=path, check=True)
    return path


class Launch:
    """A run of the launcher, or of verl's own loss without it, in a session of its own, and its log."""

    def __init__(self, folder: Path, method: str, name: str, *overrides: str) -> None:
        data = f"[{folder / 'data' / 'gsm8k.parquet'}]"
        settings = [
            f"actor_rollout_ref.model.path={folder / 'tiny'}",
            f"data.train_files={data}",
            f"data.val_files={data}",
            "data.train_batch_size=8",
            "data.max_prompt_length=16",
            "data.max_response_length=24",
            "data.shuffle=false",
            f"{ACTOR}.ppo_mini_batch_size=4",
            f"{ACTOR}.optim.lr=0.003",
            f"{ROLLOUT}.n=4",
            f"{ROLLOUT}.max_model_len=64",
            f"{ROLLOUT}.max_num_seqs=64",
            f"{ROLLOUT}.max_num_batched_tokens=2048",
            f"{ROLLOUT}.val_kwargs.n=1",
            f"reward.custom_reward_function.path={folder / 'reward.py'}",
            "trainer.logger=[console]",
            "trainer.val_before_train=false",
            "trainer.test_freq=2",
            "trainer.save_freq=2",
            f"trainer.default_local_dir={folder / name}",
        ]
        if method == "vanilla":
            chosen = [*recipe_overrides("qwen2.5-3b-instruct/grpo", "cpu"), *settings, *overrides, *VANILLA]
            started = [sys.executable, *command(chosen)]
        else:
            recipe = f"qwen2.5-3b-instruct/{method}"
            started = [*BANDPO, "launch", "verl", recipe, "--cluster", "cpu", *settings, *overrides]
        self.log = folder / f"{name}-{time.monotonic_ns()}.log"
        with self.log.open("w") as stream:
            self.process = subprocess.Popen(
                started,
                stdout=stream,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env={**ON_CPU, **os.environ, **QUIET},
                start_new_session=True,
            )

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        subprocess.run(["ray", "stop", "--force"], capture_output=True, check=False)

    def wait(self, until=lambda launch: False) -> dict[int, dict[str, float]]:
        """The metrics of each step, once the launcher has ended or `until` holds."""
        end = time.monotonic() + SECONDS
        while self.process.poll() is None and not until(self):
            if time.monotonic() > end:
                self.kill()
                raise AssertionError(f"no end after {SECONDS} s:\n{self.log.read_text()[-3000:]}")
            time.sleep(1)
        if "object has no attribute 'weight_loader'" in self.log.read_text(errors="replace"):
            self.kill()
            pytest.skip("vLLM packs its weights on this machine and then cannot take new ones")
        return self.steps()

    def steps(self) -> dict[int, dict[str, float]]:
        found = {}
        for line in self.log.read_text(errors="replace").splitlines():
            if match := re.search(r"\bstep:(\d+) - (.*)", line):
                pairs = (pair.split(":", 1) for pair in match[2].split(" - "))
                found[int(match[1])] = {key: float(number(value)) for key, value in pairs}
        return found


def number(text: str) -> str:
    return re.sub(r"np\.\w+\((.*)\)", r"\1", text)


def finished(launch: Launch) -> dict[int, dict[str, float]]:
    steps = launch.wait()
    assert launch.process.returncode == 0, launch.log.read_text(errors="replace")[-3000:]
    return steps


def test_a_run_killed_after_a_checkpoint_resumes_and_goes_on(folder):
    """With the reference policy, its KL loss, validation, and a radius so small that tokens are clipped."""
    overrides = ("rule.radius=0.001", f"{ACTOR}.use_kl_loss=true", "trainer.total_training_steps=4")
    latest = folder / "band" / "latest_checkpointed_iteration.txt"
    first = Launch(folder, "band-kl", "band", *overrides)
    first.wait(lambda _: latest.is_file())
    assert latest.is_file(), first.log.read_text(errors="replace")[-3000:]
    first.kill()
    before = first.steps()
    assert before[1]["actor/band/clip_fraction"] > 0
    assert before[1]["actor/pg_clipfrac"] == pytest.approx(before[1]["actor/band/clip_fraction"])
    assert "actor/kl_loss" in before[1]
    second = Launch(folder, "band-kl", "band", *overrides)
    after = finished(second)
    assert min(after) == 3
    assert max(after) == 4
    assert any(key.startswith("val-") for key in after[4])
    assert all("actor/band/divergence" in step for step in after.values())


def test_around_the_sampler_the_first_ratio_is_the_mismatch_of_the_engines(folder):
    bypass = ("algorithm.rollout_correction.bypass_mode=true", f"{ROLLOUT}.calculate_log_probs=true")
    run = Launch(
        folder, "band-kl", "bypass", *bypass, f"{ACTOR}.ppo_mini_batch_size=8", "trainer.total_training_steps=1"
    )
    step = finished(run)[1]
    assert step["actor/band/ratio"] == pytest.approx(1, abs=0.02)
    assert step["actor/band/ratio_max"] > 1
    assert step["actor/band/ratio_max"] < 1.2


def test_a_run_ends_when_a_worker_dies(folder):
    """Killed while verl waits for its samples, which it alone would do forever. The rule is an adaptive radius."""
    settings = ("rule.name=adaptive-band", "rule.radius=0.001", "trainer.test_freq=-1", "trainer.save_freq=-1")
    run = Launch(
        folder, "band-kl", "adaptive", *settings, *one_at_a_time(folder), "trainer.total_training_steps=1000"
    )
    steps = run.wait(until=lambda launch: 1 in launch.steps())
    assert steps[1]["actor/band/clip_fraction"] > 0
    time.sleep(2)  # sampling one at a time takes several seconds
    worker = next(process for process in psutil.process_iter() if named(process, "ray::AgentLoopWorkerTQ"))
    worker.kill()
    run.wait()
    assert run.process.returncode == 1
    last = run.log.read_text(errors="replace").strip().splitlines()[-1]
    assert last.startswith(f"AgentLoopWorkerTQ (process {worker.pid}) died: ")


def one_at_a_time(folder: Path) -> tuple[str, ...]:
    agent = f"{ROLLOUT}.agent"
    return f"{agent}.agent_loop_config_path={folder / 'loops.yaml'}", f"{agent}.default_agent_loop=one_at_a_time"


def named(process: psutil.Process, name: str) -> bool:
    with contextlib.suppress(psutil.Error):
        return "".join(process.cmdline()[:1]).startswith(name)
    return False


def test_a_fixed_clip_is_verls_vanilla_loss_metric_by_metric(folder):
    """Two runs on the same samples, four updates per rollout.

    Mini- and micro-batches are whole, since verl orders prompts anew in each run: what is left is the order of sums,
    and in the comparison of the two engines the rounding of the weights to vLLM's bfloat16.
    """
    overrides = (
        *one_at_a_time(folder),
        f"{ROLLOUT}.enable_prefix_caching=false",
        f"{ACTOR}.ppo_mini_batch_size=8",
        f"{ACTOR}.ppo_micro_batch_size_per_gpu=32",
        f"{ACTOR}.ppo_epochs=4",
        "trainer.test_freq=-1",
        "trainer.save_freq=-1",
        "trainer.total_training_steps=3",
    )
    ours = finished(Launch(folder, "grpo", "clip", *overrides))
    verls = finished(Launch(folder, "vanilla", "vanilla", *overrides))
    assert ours.keys() == verls.keys() == {1, 2, 3}
    assert all(step["actor/pg_clipfrac"] > 0 for step in verls.values())
    for step, metrics in verls.items():
        for name, value in metrics.items():
            if "perf/" in name or name.startswith("timing"):
                continue
            engines = name.startswith(("rollout_corr/", "training/rollout_"))
            allowed = {"rel": 1e-3, "abs": 0.02} if engines else {"rel": 1e-5, "abs": 1e-7}
            assert ours[step][name] == pytest.approx(value, **allowed), (step, name)
