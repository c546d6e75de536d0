"""vLLM's plugin entry point: makes `LmkvConnector` known by name, and takes memory for pools in a
GPU's memory at the one moment when vLLM still sizes its KV around it.

vLLM calls `register()` in the API server, the engine and every worker, and may call it again. The
connector's module is only named here: vLLM imports it when a configuration asks for it.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from typing import Any

CONNECTOR = "LmkvConnector"
MODULE = "lmkv.connector"

log = logging.getLogger("vllm.lmkv")


def register() -> None:
    """Register the connector, and watch workers begin; a second call does nothing."""
    from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory

    if CONNECTOR not in KVConnectorFactory._registry:
        KVConnectorFactory.register_connector(CONNECTOR, MODULE, CONNECTOR)
    _watch_workers()


def _watch_workers() -> None:
    """vLLM 0.32 makes a worker in `WorkerWrapperBase.init_worker`, whatever runs it. Its memory is
    measured later, by `determine_available_memory`, which this one worker has wrapped then."""
    from vllm.v1.worker.worker_base import WorkerWrapperBase

    begin = WorkerWrapperBase.init_worker
    if hasattr(begin, "lmkv"):
        return

    @functools.wraps(begin)
    def init_worker(self: Any, *args: Any, **kwargs: Any) -> None:
        begin(self, *args, **kwargs)
        try:
            _watch(self.worker, self.vllm_config)
        except Exception:  # then the connector says that there is no such memory
            log.warning("lmkv: no memory of the GPU is taken for a pool", exc_info=True)

    init_worker.lmkv = True  # type: ignore[attr-defined]
    WorkerWrapperBase.init_worker = init_worker


def _watch(worker: Any, vllm_config: Any) -> None:
    inline = settings_of(getattr(vllm_config.kv_transfer_config, "__dict__", {}))
    if inline is None:
        return
    from lmkv.core import config as settings

    try:
        config = settings.read(settings.InstanceConfig, inline)
    except ValueError:
        return  # the connector says it
    if config.gpu_pool_gib is None or vllm_config.model_config.enable_sleep_mode:
        return
    from lmkv.worker.gpu_room import sized_around

    opened = config.pool_device == "cuda" and config.gpu_pulls != "never"  # by the mover too
    worker.determine_available_memory = functools.partial(
        sized_around,
        worker,
        config.gpu_pool_gib,
        worker.determine_available_memory,
        opened,
    )


def settings_of(transfer: Mapping[str, Any]) -> dict[str, Any] | None:
    """lmkv's own in vLLM's `kv_transfer_config`, also where it is one of several connectors."""
    if transfer.get("kv_connector") == CONNECTOR:
        return transfer.get("kv_connector_extra_config") or {}
    extra = transfer.get("kv_connector_extra_config") or {}
    for child in extra.get("connectors") or []:
        if isinstance(child, Mapping) and (found := settings_of(child)) is not None:
            return found
    return None
