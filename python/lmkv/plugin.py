"""vLLM's plugin entry point: makes `LmkvConnector` known by name.

vLLM calls `register()` in the API server, the engine and every worker, and may call it again. The
connector's module is only named here: vLLM imports it when a configuration asks for it.
"""

from __future__ import annotations

CONNECTOR = "LmkvConnector"
MODULE = "lmkv.connector"


def register() -> None:
    """Register the connector; a second call does nothing."""
    from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory

    if CONNECTOR not in KVConnectorFactory._registry:
        KVConnectorFactory.register_connector(CONNECTOR, MODULE, CONNECTOR)
