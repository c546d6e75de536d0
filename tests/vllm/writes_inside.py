"""What an engine does in tests of writes: requests stepped by hand, slots written to a file.

`watch` notes what every request's tokens have been, so that a slot's key names tokens by vLLM's own
account and not by lmkv's.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from itertools import count
from typing import Any

import numpy as np

NAMES = count()
DEADLINE = 60.0


def _scheduler(llm: Any) -> Any:
    return llm.llm_engine.engine_core.engine_core.scheduler


def _connector(llm: Any) -> Any:
    return _scheduler(llm).connector


def watch(llm: Any) -> None:
    """From now on `llm.seen` has tokens by key; `llm.computed` counts steps that compute."""
    llm.seen, llm.computed = {}, 0
    connector, scheduler = _connector(llm), _scheduler(llm)
    plan, chunk = connector.build_connector_meta, connector._chunk_tokens()
    long = dict[str, int]()

    def planned(output: Any) -> Any:
        metadata = plan(output)
        llm.computed += bool(output.num_scheduled_tokens)
        for request in scheduler.requests.values():
            tokens = list(request.all_token_ids)
            if len(tokens) // chunk != long.get(request.request_id):
                long[request.request_id] = len(tokens) // chunk
                chain = connector._agent._hasher.chain()
                chain.extend(tokens)
                for i in range(len(chain)):
                    llm.seen[chain.keys(0, i, i + 1)] = tokens[: (i + 1) * chunk]
        return metadata

    connector.build_connector_meta = planned


def dump(llm: Any, path: str) -> list[list[int]]:
    """Writes the payload of every readable slot to `path`; their tokens, those that are not the
    beginning of others'. A key of no tokens that were is an error."""
    from vllm.distributed.kv_transfer import get_kv_transfer_group

    agent, worker = _connector(llm)._agent, get_kv_transfer_group()._worker
    pool, layout = worker.pool, worker._pages[0].slot
    keys, places, _ = agent.table.slice(0, agent.table.usable * 16)
    slots, tokens = {}, []
    for i in range(len(keys) // 16):
        key = keys[16 * i : 16 * i + 16]
        if hasattr(llm, "seen"):
            tokens.append(llm.seen[key])
        address = pool.slot_address(places[8 * i : 8 * i + 8]) + layout.payload_offset
        raw = ctypes.string_at(address, layout.payload_bytes)
        slots[key.hex()] = np.frombuffer(raw, np.float32)
    np.savez(path, **slots)
    whole = {tuple(t) for t in tokens}
    chunk = _connector(llm)._chunk_tokens()
    beginnings = {t[:end] for t in whole for end in range(chunk, len(t), chunk)}
    return [list(t) for t in whole - beginnings]


def _add(llm: Any, prompt: list[int], max_tokens: int, **sampling: Any) -> str:
    from vllm import SamplingParams
    from vllm.inputs import TokensPrompt
    from vllm.sampling_params import RequestOutputKind

    params = SamplingParams(
        max_tokens=max_tokens,
        detokenize=False,
        ignore_eos=True,
        output_kind=RequestOutputKind.FINAL_ONLY,
        **{"temperature": 0, **sampling},
    )
    name = f"story-{next(NAMES)}"
    return str(llm.llm_engine.add_request(name, TokensPrompt(prompt_token_ids=prompt), params))


def _steps(llm: Any, true: Callable[[], bool]) -> None:
    """Steps until that is so; some of them only wait for an answer about peers."""
    end = time.monotonic() + DEADLINE
    while not true():
        assert time.monotonic() < end, "not in time"
        llm.llm_engine.step()


def _compute(llm: Any, steps: int) -> None:
    until = llm.computed + steps
    _steps(llm, lambda: llm.computed >= until or not _scheduler(llm).requests)


def _drain(llm: Any) -> dict[str, list[list[int]]]:
    outputs = {}
    while llm.llm_engine.has_unfinished_requests():
        for output in llm.llm_engine.step():
            if output.finished:
                outputs[output.request_id] = [list(o.token_ids) for o in output.outputs]
    for _ in range(3):
        llm.llm_engine.step()
    return outputs


def together(llm: Any, prompts: list[list[int]], max_tokens: int, **sampling: Any) -> list[Any]:
    for prompt in prompts:
        _add(llm, prompt, max_tokens, **sampling)
    return list(_drain(llm).values())


def sampled(llm: Any, prompt: list[int], max_tokens: int, n: int) -> int:
    """How many different answers `n` samples gave."""
    (answers,) = together(llm, [prompt], max_tokens, n=n, temperature=1.0)
    return len({tuple(answer) for answer in answers})


def aborted(llm: Any, prompts: list[list[int]], max_tokens: int, every: int) -> int:
    """One more request is aborted after each `every` steps, in whatever state it is; the states."""
    names = [_add(llm, prompt, max_tokens) for prompt in prompts]
    states = set()
    for name in names:
        _compute(llm, every)
        states |= {str(r.status) for r in _scheduler(llm).requests.values()}
        llm.llm_engine.abort_request([name], internal=True)
    _drain(llm)
    return len(states)


def interrupted(llm: Any, prompts: list[list[int]], max_tokens: int, how: str) -> list[Any]:
    """Running requests meet a reset of all caches, or a pause that keeps them (and resets too)."""
    for prompt in prompts:
        _add(llm, prompt, max_tokens)
    _compute(llm, 12)
    core = llm.llm_engine.engine_core.engine_core
    if how == "reset":
        assert core.reset_prefix_cache(reset_running_requests=True, reset_connector=True)
    else:
        core.pause_scheduler("keep")
        llm.llm_engine.step()
        core.resume_scheduler()
    return list(_drain(llm).values())


def session(llm: Any, turns: list[list[int]], max_tokens: int) -> list[int]:
    """A streaming-input session as AsyncLLM makes it; all its tokens in the end."""
    from vllm import SamplingParams
    from vllm.inputs import TokensPrompt

    engine, scheduler = llm.llm_engine, _scheduler(llm)
    params = SamplingParams(max_tokens=max_tokens, temperature=0, detokenize=False, ignore_eos=True)
    name = f"session-{next(NAMES)}"
    for turn in turns:
        request = engine.input_processor.process_inputs(
            name,
            TokensPrompt(prompt_token_ids=turn),
            params,
            supported_tasks=engine.get_supported_tasks(),
            resumable=True,
        )
        request.external_req_id = name
        engine.engine_core.add_request(request)
        _steps(llm, lambda: scheduler.requests[name].status.name == "WAITING_FOR_STREAMING_REQ")
    tokens = list(scheduler.requests[name].all_token_ids)
    engine.engine_core.abort_requests([name])
    _drain(llm)
    return tokens


def preemptions(llm: Any) -> int:
    from prometheus_client import REGISTRY

    samples = (s for family in REGISTRY.collect() for s in family.samples)
    return int(sum(s.value for s in samples if s.name == "vllm:num_preemptions_total"))


def drafts(llm: Any) -> tuple[int, int]:
    """(drafted, accepted) tokens."""
    from prometheus_client import REGISTRY

    found = {s.name: s.value for family in REGISTRY.collect() for s in family.samples}
    return (
        int(found.get("vllm:spec_decode_num_draft_tokens_total", 0)),
        int(found.get("vllm:spec_decode_num_accepted_tokens_total", 0)),
    )
