"""An engine with data parallelism in the zygote's child: vLLM's own front end and its engines.

The commands of zygote.Commands that have a meaning there. A request's `rank` names its engine;
hooks (`call`) cannot reach into the engines, which are processes of their own.
"""

from __future__ import annotations

import asyncio
import itertools
from typing import Any


class ParallelCommands:
    def __init__(self, arguments: dict[str, Any]) -> None:
        from vllm import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        self._loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self._loop)
        self._numbers = itertools.count()
        self._llm = self._loop.run_until_complete(
            _made(lambda: AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments)))
        )

    def generate(self, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [self._loop.run_until_complete(self._one(request)) for request in requests]

    async def _one(self, request: dict[str, Any]) -> dict[str, Any]:
        from tests.vllm.zygote import answer, sampling

        outputs = self._llm.generate(
            {"prompt_token_ids": request["prompt"]},
            sampling(request),
            f"request-{next(self._numbers)}",
            data_parallel_rank=request["rank"],
        )
        return answer([output async for output in outputs][-1])

    def shutdown(self) -> None:
        self._llm.shutdown()


async def _made(make: Any) -> Any:
    """Inside a running loop, where the front end begins to listen to its engines."""
    return make()
