"""Settings that are each allowed, and not together.

Each conflict is a sentence with the setting, its value, where that came from, and what is allowed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lmkv.core.config import Config, ControllerConfig, InstanceConfig


def of_instance(config: InstanceConfig) -> Iterator[str]:
    yield from _ordered(config, "pull_deadline_min", "pull_deadline_max")
    yield from _pools(config)


def of_controller(config: ControllerConfig) -> Iterator[str]:
    yield from _ordered(config, "suspect_after_beats", "dead_after_beats", strictly=True)
    yield from _ordered(config, "warming_least", "warming_most")
    yield from _ports(config)


def _ordered(config: Config, low: str, high: str, strictly: bool = False) -> Iterator[str]:
    """The first of a pair must not exceed the second."""
    a, b = getattr(config, low), getattr(config, high)
    if a > b or (strictly and a == b):
        yield (
            f"{low} = {a!r} ({config.origins[low]}): allowed is {'less' if strictly else 'at most'}"
            f"{' than' if strictly else ''} {high} = {b!r} ({config.origins[high]})"
        )


def _pools(config: InstanceConfig) -> Iterator[str]:
    """A pool on a GPU takes memory from vLLM's own KV: how much is never guessed."""
    device, origin = config.pool_device, config.origins["pool_device"]
    on_gpu = device != "host"
    if on_gpu == (config.gpu_pool_gib is None):
        yield (
            f"gpu_pool_gib = {config.gpu_pool_gib or 'none'} ({config.origins['gpu_pool_gib']}): "
            f"allowed is {'a size in GiB' if on_gpu else 'none'} with pool_device = {device} "
            f"({origin})"
        )
    if device == "cuda" and config.pool_gib is not None:
        yield (
            f"pool_gib = {config.pool_gib!r} ({config.origins['pool_gib']}): allowed is auto with "
            f"pool_device = cuda ({origin}), whose size is gpu_pool_gib"
        )


def _ports(config: ControllerConfig) -> Iterator[str]:
    """State, query and HTTP sockets: a port that is not named is the one after."""
    if config.port and config.query_port == config.port:
        yield (
            f"query_port = {config.query_port} ({config.origins['query_port']}): "
            f"allowed is another port than port, or 0 for the next one"
        )
    if config.port == 65535 and not config.query_port:
        yield (
            f"port = 65535 ({config.origins['port']}): allowed is a port with a next one, "
            f"or name a query_port"
        )
    query_port = config.query_port or (config.port + 1 if config.port else 0)
    if config.web and not config.http_port and query_port == 65535:
        yield (
            f"http_port = 0 ({config.origins['http_port']}): allowed is another port where the "
            f"query port is 65535"
        )
