"""An agent loop for verl whose samples two runs share: one request at a time, each with a seed of its own.

vLLM rounds differently in another batch, and verl's own `full_determinism` gives all responses to a prompt one seed.
"""

from __future__ import annotations

import asyncio
from typing import Any

from verl.experimental.agent_loop.agent_loop import AgentLoopOutput
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop

_ONE = asyncio.Lock()


class OneAtATime(SingleTurnAgentLoop):
    async def run(self, sampling_params: dict[str, Any], **kwargs: Any) -> AgentLoopOutput:
        seed = hash((int(kwargs["global_steps"]), int(kwargs["index"]), int(kwargs.get("session_id", 0)))) % 2**31
        async with _ONE:
            return await super().run({**sampling_params, "seed": seed}, **kwargs)
