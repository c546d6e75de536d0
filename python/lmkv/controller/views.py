"""The registry seen from outside: the answers to `Status` and `Lookup`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmkv import __version__, _native
from lmkv.controller.instance import Instance, differs, group
from lmkv.core import wire
from lmkv.core.extras import SALT, pack
from lmkv.core.messages import (
    MAX_KEYS,
    InstanceState,
    Lookup,
    LookupInfo,
    Refused,
    Status,
    StatusInfo,
)

if TYPE_CHECKING:
    from lmkv.controller.registry import Registry


def status(registry: Registry, message: Status) -> StatusInfo:
    directory, placement = registry.placement.directory, registry.placement
    first: dict[str, Instance] = {}  # of each model
    states = []
    for instance in registry.instances.values():
        model = instance.registration.model
        if instance.number >= 0:
            first.setdefault(model, instance)
        states.append(_state(registry, instance, first.get(model, instance)))
    return StatusInfo(
        message.request,
        registry.config.cluster,
        registry.name,
        registry.epoch,
        registry.state,
        __version__,
        registry.clock() - registry.started,
        len(directory),
        directory.bytes,
        placement.locates,
        placement.locate_keys,
        registry.drifts,
        registry.resyncs,
        states,
        registry.config.max_frame_bytes,
    )


def _state(registry: Registry, instance: Instance, first: Instance) -> InstanceState:
    registration, beat = instance.registration, instance.heartbeat
    differing = differs(first.registration, registration)
    state = instance.state
    if state == "live":
        if registry.syncing(instance):
            state = "syncing"
        elif differing:
            state = "incompatible"
    keys = registry.placement.directory.sums(instance.number)[0] if instance.number >= 0 else 0
    return InstanceState(
        instance.name,
        instance.epoch,
        state,
        registration.model,
        registration.serving_url,
        len(registration.ranks),
        keys,
        max(0.0, registry.clock() - instance.heard),
        instance.pullable,
        registration.version,
        differing,
        registration.data_version,
        instance.hit_tokens,
        instance.miss_tokens,
        dict(beat.pool_granules) if beat else {},
    )


def lookup(registry: Registry, message: Lookup, frames: list[bytes]) -> LookupInfo | Refused:
    like = _like(registry, message)
    if isinstance(like, Refused):
        return like
    registration = like.registration
    if frames:
        keys = frames[0]
        wire.counts(frames, wire.KEY_BYTES)
    else:
        hasher = _native.KeyHasher(
            registration.namespace, registration.group_specs, registration.chunk_tokens
        )
        chain = hasher.chain(pack([(SALT, message.salt.encode())]) if message.salt else b"")
        chain.extend(message.tokens)
        keys = chain.keys(_of_all_tokens(registration.group_specs))
    if len(keys) > MAX_KEYS * wire.KEY_BYTES:
        text = f"tokens: {len(keys) // wire.KEY_BYTES} chunks, at most {MAX_KEYS} are allowed"
        return Refused("too_large", text, "tokens", message.request)
    each = [keys[i : i + wire.KEY_BYTES] for i in range(0, len(keys), wire.KEY_BYTES)]
    holders = [sorted(registry.placement.holders(key)) for key in each]
    return LookupInfo(
        message.request,
        registration.chunk_tokens,
        [key.hex() for key in each],
        holders,
        _matched(holders, registration.chunk_tokens),
    )


def _of_all_tokens(group_specs: list[str]) -> int:
    """The cache group whose chunks say how much of a prompt there is: no window, no state."""
    kinds = ("kind=full\n", "kind=mla\n")
    found = (n for n, spec in enumerate(group_specs) if any(kind in spec for kind in kinds))
    return next(found, 0)


def _matched(holders: list[list[str]], chunk_tokens: int) -> dict[str, int]:
    matched: dict[str, int] = {}
    for chunk, names in enumerate(holders):
        going = [name for name in names if matched.get(name, 0) == chunk * chunk_tokens]
        if not going:
            break
        for name in going:
            matched[name] = (chunk + 1) * chunk_tokens
    return matched


def _like(registry: Registry, message: Lookup) -> Instance | Refused:
    """The instance whose keys are meant."""
    for field in ("text", "messages", "lora"):
        if getattr(message, field):
            text = f"{field}: this release looks up tokens or keys only"
            return Refused("field", text, field, message.request)
    live = [instance for instance in registry.instances.values() if instance.number >= 0]
    if message.like:
        live = [instance for instance in live if instance.name == message.like]
    if not live:
        text = (
            f"like: instance {message.like!r} is not known here"
            if message.like
            else ("like: no instance is registered")
        )
        return Refused("unknown_instance", text, "like", message.request)
    if len({group(instance.registration) for instance in live}) > 1:
        names = ", ".join(sorted(instance.name for instance in live)[:5])
        text = f"like: instances differ in what they share; name one of {names}"
        return Refused("field", text, "like", message.request)
    return live[0]
