"""Who holds a prompt: `lookup` chunk by chunk, `route` scored for whoever sends a request on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from lmkv import _native
from lmkv.controller.instance import Instance, differs
from lmkv.core import wire
from lmkv.core.extras import LORA, SALT, pack
from lmkv.core.messages import (
    MAX_KEYS,
    Candidate,
    Lookup,
    LookupInfo,
    Refused,
    Register,
    Route,
    Routed,
)

if TYPE_CHECKING:
    from lmkv.controller.registry import Registry

CANDIDATES = 1000
DIFFERING = 100  # instances that a lookup names


def lookup(
    registry: Registry, message: Lookup, frames: list[bytes], lora: bytes = b""
) -> LookupInfo | Refused:
    """`lora`: the hash of its adapter."""
    if registry.config.require_salt and not frames and not message.salt:
        return unsalted(message.request)
    named = like(registry, message)
    if isinstance(named, Refused):
        return named
    registration = named.registration
    if frames:
        for field in ("tokens", "text", "messages", "lora"):
            if getattr(message, field):
                text = f"{field}: keys are given, which say it all"
                return Refused("field", text, field, message.request)
        keys = frames[0]
        wire.counts(frames, wire.KEY_BYTES)
    else:
        keys = _keys(registration, message.tokens, message.salt, lora)
    if len(keys) > MAX_KEYS * wire.KEY_BYTES:
        return _too_long(keys, message.request)
    each = _split(keys)
    holders = [sorted(registry.placement.holders(key)) for key in each]
    return LookupInfo(
        message.request,
        registration.chunk_tokens,
        [key.hex() for key in each],
        holders,
        _matched(holders, registration.chunk_tokens),
        _incompatible(registry, named),
        len(message.tokens),
    )


def route(registry: Registry, message: Route, lora: bytes = b"") -> Routed | Refused:
    if registry.config.require_salt and not message.salt:
        return unsalted(message.request)
    live = served(registry, message)
    if isinstance(live, Refused):
        return live
    has: dict[str, int] = {}
    for registration in _classes(live):
        keys = _keys(registration, message.tokens, message.salt, lora)
        if len(keys) > MAX_KEYS * wire.KEY_BYTES:
            return _too_long(keys, message.request)
        holders = map(registry.placement.holders, _split(keys))
        has |= _matched(holders, registration.chunk_tokens)
    live.sort(key=lambda each: (-has.get(each.name, 0), each.load, each.name))
    now = registry.clock()
    candidates = [
        Candidate(
            each.name,
            each.registration.serving_url,
            each.registration.dp_rank,
            has.get(each.name, 0),
            each.load,
            max(0.0, now - each.heard),
        )
        for each in live[: min(message.limit, CANDIDATES)]
    ]
    return Routed(message.request, candidates)


def served(registry: Registry, message: Route) -> list[Instance] | Refused:
    """The live instances of the model."""
    live = [each for each in registry.instances.values() if each.state == "live"]
    models = sorted({each.registration.model for each in live})
    if message.model:
        live = [each for each in live if each.registration.model == message.model]
        if not live:
            return _unserved(message.model, models, message.request)
    elif len(models) > 1:
        text = f"model: instances serve several; name one of {_some(models)}"
        return Refused("field", text, "model", message.request)
    return live


def _unserved(model: str, models: Sequence[str], request: int) -> Refused:
    text = f"model {model!r}: no live instance serves it; {_some(models)} are served"
    return Refused("unknown_model", text, "model", request)


# ---------------------------------------------------------------- keys


def _classes(instances: Sequence[Instance]) -> list[Register]:
    """One registration for each way of making keys."""
    found: dict[tuple[object, ...], Register] = {}
    for one in (each.registration for each in instances):
        found.setdefault((one.namespace, tuple(one.group_specs), one.chunk_tokens), one)
    return list(found.values())


def _keys(registration: Register, tokens: list[int], salt: str, lora: bytes) -> bytes:
    chain = _chain(registration, tokens, salt, lora)
    return chain.keys(_of_all_tokens(registration.group_specs))


def _chain(registration: Register, tokens: list[int], salt: str, lora: bytes) -> _native.KeyChain:
    hasher = _native.KeyHasher(
        registration.namespace, registration.group_specs, registration.chunk_tokens
    )
    items = (SALT, salt.encode()), (LORA, lora)
    chain = hasher.chain(pack((tag, value) for tag, value in items if value))
    chain.extend(tokens)
    return chain


def keys_of_all_groups(
    registration: Register, tokens: list[int], salt: str, lora: bytes = b""
) -> bytes:
    """Chunk by chunk, those of every cache group."""
    chain = _chain(registration, tokens, salt, lora)
    groups = [_split(chain.keys(group)) for group in range(len(registration.group_specs))]
    return b"".join(key for chunk in zip(*groups) for key in chunk)


def _of_all_tokens(group_specs: list[str]) -> int:
    """The cache group whose chunks say how much of a prompt there is: no window, no state."""
    kinds = ("kind=full\n", "kind=mla\n")
    found = (n for n, spec in enumerate(group_specs) if any(kind in spec for kind in kinds))
    return next(found, 0)


def _split(keys: bytes) -> list[bytes]:
    return [keys[i : i + wire.KEY_BYTES] for i in range(0, len(keys), wire.KEY_BYTES)]


def unsalted(request: int) -> Refused:
    text = "salt: must be the request's cache_salt here (the controller's setting require_salt)"
    return Refused("field", text, "salt", request)


def _too_long(keys: bytes, request: int) -> Refused:
    text = f"tokens: {len(keys) // wire.KEY_BYTES} chunks, at most {MAX_KEYS} are allowed"
    return Refused("too_large", text, "tokens", request)


# ---------------------------------------------------------------- holders


def _matched(holders: Iterable[list[str]], chunk_tokens: int) -> dict[str, int]:
    """Tokens of the whole prefix by instance; looks no further than anybody has it."""
    matched: dict[str, int] = {}
    for chunk, names in enumerate(holders):
        going = [name for name in names if matched.get(name, 0) == chunk * chunk_tokens]
        if not going:
            break
        for name in going:
            matched[name] = (chunk + 1) * chunk_tokens
    return matched


def _incompatible(registry: Registry, like: Instance) -> dict[str, str]:
    """Instances of the same model that do not share with `like`, and the field that differs."""
    mine, model = like.group, like.registration.model
    found: dict[str, str] = {}
    for other in registry.instances.values():
        if other.number < 0 or other.registration.model != model:
            continue
        if other.group != mine:
            found[other.name] = differs(like.registration, other.registration)
            if len(found) == DIFFERING:
                break
    return found


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:5])) or "none"


def like(registry: Registry, message: Lookup) -> Instance | Refused:
    """The instance whose keys are meant."""
    if message.like:
        named = registry.instances.get(message.like)
        live = [named] if named is not None and named.number >= 0 else []
    else:
        live = [instance for instance in registry.instances.values() if instance.number >= 0]
    if message.model and live:
        models = sorted({instance.registration.model for instance in live})
        live = [instance for instance in live if instance.registration.model == message.model]
        if not live:
            return _unserved(message.model, models, message.request)
    if not live:
        if not message.like:
            return Refused("unknown_instance", "no instance is registered", "", message.request)
        text = f"like: instance {message.like!r} is not known here"
        return Refused("unknown_instance", text, "like", message.request)
    if len({instance.group for instance in live}) > 1:
        names = ", ".join(sorted(instance.name for instance in live)[:5])
        text = f"like: instances differ in what they share; name one of {names}"
        return Refused("field", text, "like", message.request)
    return live[0]
