"""The registry seen from outside: the answers to what people and their tools ask.

ask(registry, connection, message, frames) is None for what is no such question. `lookup` and
`route` are in `prompts.py`. All of it runs between two locates, so nothing costs more than a page.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from heapq import nlargest, nsmallest
from typing import Any

from lmkv import __version__
from lmkv.controller.instance import Instance, add, differs
from lmkv.controller.prompts import lookup, route
from lmkv.controller.registry import Out, Registry
from lmkv.core.messages import (
    INSTANCE_SORTS,
    PROTOCOL_MAX,
    PROTOCOL_MIN,
    AnyMessage,
    Controllers,
    ControllersInfo,
    ControllerState,
    Flow,
    Instances,
    InstancesInfo,
    InstanceState,
    Lookup,
    Message,
    Prefix,
    Prefixes,
    PrefixesInfo,
    Refused,
    Route,
    Status,
    StatusInfo,
    Subscribe,
)
from lmkv.core.peer_labels import as_label

PAGE = 250  # instances
NAMED = 16  # holders of a prefix
VERSIONS = 16


def ask(
    registry: Registry, connection: bytes, message: AnyMessage, frames: list[bytes]
) -> list[Out] | None:
    """What must be sent for a question, later where it waits; None: it is none of these."""
    if isinstance(message, Subscribe):
        answer: Message | None = registry.history.ask(connection, message)
    else:
        answer = _answer(registry, message, frames)
        if answer is None:
            return None
    return [(connection, answer, ())] if answer is not None else []


def _answer(registry: Registry, message: AnyMessage, frames: list[bytes]) -> Message | None:
    if isinstance(message, Status):
        return status(registry, message)
    if isinstance(message, Lookup):
        return lookup(registry, message, frames)
    if isinstance(message, Route):
        return route(registry, message)
    if isinstance(message, Instances):
        return instances(registry, message)
    if isinstance(message, Controllers):
        others = registry.peers.addresses
        return ControllersInfo(message.request, [_controller(registry)], others)
    if isinstance(message, Prefixes):
        return prefixes(registry, message)
    if isinstance(message, Flow):
        return registry.flows.answer(message)
    return None


# ---------------------------------------------------------------- the cluster


def status(registry: Registry, message: Status) -> StatusInfo:
    placement, viewer = registry.placement, _Viewer(registry)
    alive = [each for each in registry.instances.values() if each.number >= 0]
    granules: dict[str, int] = {}
    for instance in alive:
        if instance.heartbeat is not None:
            add(granules, instance.heartbeat.pool_granules)
    shown: Iterable[Instance] = registry.instances.values()
    if message.brief:
        shown = nlargest(min(message.top, PAGE), alive, key=viewer.keys)
    return StatusInfo(
        message.request,
        registry.config.cluster,
        registry.name,
        registry.epoch,
        registry.state,
        __version__,
        registry.clock() - registry.started,
        len(placement.directory),
        placement.directory.bytes,
        placement.locates,
        placement.locate_keys,
        registry.drifts,
        registry.resyncs,
        [viewer.instance(instance) for instance in shown],
        registry.config.max_frame_bytes,
        dict(Counter(viewer.state(instance) for instance in registry.instances.values())),
        placement.located_keys,
        registry.syncs,
        registry.bad_messages,
        _lag(registry, alive),
        registry.hit_tokens,
        registry.miss_tokens,
        granules,
        registry.heartbeats,
        registry.announced_keys,
        registry.retracted_keys,
        registry.syncs_waiting,
        PROTOCOL_MIN,
        PROTOCOL_MAX,
        registry.ages.counts,
        registry.ages.seconds,
        registry.flows.bytes,
        _versions(alive),
        registry.jobs.states,
        dict(registry.jobs.ended),
        dict(registry.jobs.bytes),
        registry.pins.total,
    )


def _controller(registry: Registry) -> ControllerState:
    directory = registry.placement.directory
    alive = [each for each in registry.instances.values() if each.number >= 0]
    return ControllerState(
        registry.name,
        registry.epoch,
        registry.state,
        __version__,
        registry.clock() - registry.started,
        len(directory),
        directory.bytes,
        len(alive),
        registry.syncs,
        registry.drifts,
        registry.resyncs,
        _lag(registry, alive),
    )


def _versions(alive: Iterable[Instance]) -> dict[str, int]:
    counts = Counter(as_label(instance.registration.version) for instance in alive)
    return dict(counts.most_common(VERSIONS))


def _lag(registry: Registry, alive: Iterable[Instance]) -> float:
    now = registry.clock()
    return max((now - instance.heard for instance in alive), default=0.0)


# ---------------------------------------------------------------- instances


def instances(registry: Registry, message: Instances) -> InstancesInfo | Refused:
    viewer = _Viewer(registry)
    if message.instance:
        found = registry.instances.get(message.instance)
        if found is None:
            text = f"instance {message.instance!r} is not known here"
            return Refused("unknown_instance", text, "instance", message.request)
        return InstancesInfo(message.request, [viewer.instance(found)])
    limit = min(max(1, message.limit), PAGE)
    if message.sort:
        return _sorted(registry, viewer, message, limit)
    everyone = registry.instances.values()
    names = [each.name for each in everyone if viewer.passes(each, message.filter)]
    page = nsmallest(limit + 1, (name for name in names if name > message.after))
    shown = [viewer.instance(registry.instances[name]) for name in page[:limit]]
    following = page[limit - 1] if len(page) > limit else ""
    return InstancesInfo(message.request, shown, following, len(names))


def _sorted(
    registry: Registry, viewer: _Viewer, message: Instances, limit: int
) -> InstancesInfo | Refused:
    if message.sort not in INSTANCE_SORTS:
        text = f"sort {message.sort!r}: allowed is one of {', '.join(INSTANCE_SORTS)}"
        return Refused("field", text, "sort", message.request)
    found = [each for each in registry.instances.values() if viewer.passes(each, message.filter)]
    found.sort(key=lambda each: each.name)
    found.sort(key=lambda each: viewer.rank(each, message.sort), reverse=message.descending)
    page = found[message.offset : message.offset + limit]
    shown = [viewer.instance(instance) for instance in page]
    return InstancesInfo(message.request, shown, total=len(found))


class _Viewer:
    """Instances as they are shown; compared with the first of their model, one a class."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._first: dict[str, Instance] = {}
        self._differing: dict[tuple[object, ...], str] = {}

    def _compared(self, instance: Instance) -> tuple[Instance, str]:
        """The first of its model, and the field in which it differs from that one."""
        model = instance.registration.model
        first = self._first.get(model)
        if first is None:
            first = self._first[model] = self._registry.first(instance)
        if first is instance:
            return first, ""
        mine = (model, instance.group)
        if mine not in self._differing:
            self._differing[mine] = differs(first.registration, instance.registration)
        return first, self._differing[mine]

    def state(self, instance: Instance) -> str:
        if instance.state != "live":
            return instance.state
        if self._registry.syncing(instance):
            return "syncing"
        return "incompatible" if self._compared(instance)[1] else "live"

    def passes(self, instance: Instance, text: str) -> bool:
        registration = instance.registration
        texts = instance.name, registration.model, registration.version
        return any(text in each for each in texts) or text == self.state(instance)

    def rank(self, instance: Instance, sort: str) -> Any:
        """What instances are ordered by."""
        beat = instance.heartbeat
        granules = beat.pool_granules if beat else {}
        if sort == "instance":
            return instance.name
        if sort == "state":
            return self.state(instance)
        if sort in ("model", "version"):
            return getattr(instance.registration, sort)
        if sort == "fill":
            held = sum(granules.values())
            return (held - granules.get("free", 0)) / max(1, held)
        if sort in ("pinned", "limbo"):
            return granules.get(sort, 0)
        if sort == "retired_age":
            return instance.ages.median
        if sort in ("bytes_in", "bytes_out"):
            return self._registry.flows.of(instance.name)[sort == "bytes_out"]
        if sort in ("hit_tokens", "miss_tokens"):
            return sum(getattr(instance, sort).values())
        return instance.load if sort == "load" else -instance.heard

    def keys(self, instance: Instance) -> int:
        number = instance.number
        return self._registry.placement.directory.sums(number)[0] if number >= 0 else 0

    def instance(self, instance: Instance) -> InstanceState:
        registry, registration, beat = self._registry, instance.registration, instance.heartbeat
        first, differing = self._compared(instance)
        return InstanceState(
            instance.name,
            instance.epoch,
            self.state(instance),
            registration.model,
            registration.serving_url,
            len(registration.ranks),
            self.keys(instance),
            max(0.0, registry.clock() - instance.heard),
            instance.pullable,
            registration.version,
            differing,
            registration.data_version,
            instance.hit_tokens,
            instance.miss_tokens,
            dict(beat.pool_granules) if beat else {},
            first.name if differing else "",
            registration.dp_rank,
            beat.running if beat else 0,
            beat.waiting if beat else 0,
            instance.load,
            instance.ages.median,
            *registry.flows.of(instance.name),
        )


# ---------------------------------------------------------------- prefixes


def prefixes(registry: Registry, message: Prefixes) -> PrefixesInfo:
    found: list[Prefix] = []
    for key, hot in registry.placement.hot.ranked():
        if len(found) >= message.top:
            break
        if names := sorted(registry.placement.holders(key)):
            prefix = Prefix(key.hex(), hot.model, hot.tokens, hot.hits, len(names), names[:NAMED])
            found.append(prefix)
    return PrefixesInfo(message.request, found)
