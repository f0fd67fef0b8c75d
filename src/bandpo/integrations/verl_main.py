"""verl's main_ppo, ended when one of its workers dies: python -m bandpo.integrations.verl_main [Hydra's arguments].

verl waits for samples without a limit. If the process that would deliver them is gone, its run stands still; here it
ends with exit code 1 and Ray's account of the death as its last line.
"""

from __future__ import annotations

import _thread
import contextlib
import runpy
import signal
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from typing import Any

SECONDS = 5.0  # between two looks
GRACE = 30.0  # for verl to end by itself, with its own traceback
# Raises KeyboardInterrupt in the main thread; SIGINT would not where it is ignored, as under nohup.
SIGNAL = signal.SIGUSR1
# What Ray's account of a death holds if nobody asked for it; other deaths are part of a run.
UNASKED = ("SYSTEM_ERROR", "NODE_OUT_OF_MEMORY", "NODE_DIED", "oom_context")


def deaths(actors: Iterable[Mapping[str, Any]]) -> list[str]:
    """A sentence for each actor, as Ray's actor table describes it, that died without being told to."""
    found = []
    for actor in actors:
        cause = str(actor.get("DeathCause") or "")
        if actor["State"] == "DEAD" and any(word in cause for word in UNASKED):
            reason = cause.partition('error_message: "')[2].partition('"')[0] or cause
            found.append(f"{actor['ActorClassName']} (process {actor['Pid']}) died: {reason}")
    return found


def watch(found: list[str]) -> None:
    """Interrupt the main thread once an actor of this run has died and verl has not ended by itself."""
    import ray
    from ray._private import state

    while not found:
        time.sleep(SECONDS)
        if not ray.is_initialized():  # else the calls below would start a Ray of their own
            continue
        with contextlib.suppress(Exception):  # Ray is stopping
            job = ray.get_runtime_context().get_job_id()
            found += deaths(actor for actor in state.actors().values() if actor["JobID"] == job)
    time.sleep(GRACE)
    _thread.interrupt_main(SIGNAL)


def main() -> None:
    found: list[str] = []
    signal.signal(SIGNAL, signal.default_int_handler)
    threading.Thread(target=watch, args=(found,), daemon=True).start()
    try:
        runpy.run_module("verl.trainer.main_ppo", run_name="__main__", alter_sys=True)
    except KeyboardInterrupt:
        if not found:
            raise
        sys.exit("\n".join(found))


if __name__ == "__main__":
    main()
