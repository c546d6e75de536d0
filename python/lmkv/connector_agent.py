"""The agent's beginning: an `Engine` of vLLM's configuration and its workers' handshakes, and the
`Agent` of it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from lmkv.agent import tracing
from lmkv.agent.agent import Agent
from lmkv.agent.engine import Engine, engine_of
from lmkv.agent.kv_events import Describe
from lmkv.agent.links import Link
from lmkv.agent.namespace import Unshareable, namespace
from lmkv.agent.texts import Texts
from lmkv.connector_deployment import instance_of
from lmkv.core import identity
from lmkv.core.config import InstanceConfig
from lmkv.core.keyfiles import ClientKeys


def engine_here(
    vllm_config: Any,
    kv_cache_config: Any,
    config: InstanceConfig,
    chunk_tokens: int,
    ranks: Sequence[dict[str, Any]],
) -> Engine:
    """`ranks` are the handshakes of all workers. Raises Unshareable."""

    def named(isolation: str) -> str:
        return namespace(vllm_config, chunk_tokens, config.weights_version, isolation)

    named("")
    here = identity.host_identity(identity.run_dir(config.run_dir or None))
    if any(r["control"].startswith("ipc://") and r["info"].host != here for r in ranks):
        raise Unshareable("ranks are on several hosts, which takes control_interface")
    groups = kv_cache_config.kv_cache_groups
    instance, engine_id = instance_of(vllm_config, config)
    return engine_of(vllm_config, groups, chunk_tokens, ranks, instance, engine_id, named)


def agent_of(
    vllm_config: Any,
    config: InstanceConfig,
    engine: Engine,
    keys: ClientKeys | None,
    rank_keys: ClientKeys | None,
    describe: Describe | None,
    texts: Texts,
) -> Agent:
    """By `keys` controllers know it, by `rank_keys` workers and movers."""
    observability = getattr(vllm_config, "observability_config", None)
    endpoint = getattr(observability, "otlp_traces_endpoint", None)
    return Agent(
        config,
        engine,
        connect=partial(Link, keys=keys),
        ranks=partial(Link, keys=rank_keys, short=False),
        describe=describe,
        tracer=tracing.tracer(endpoint, engine.instance),
        texts=texts,
    )
