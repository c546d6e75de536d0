"""What is wrong with a question about jobs, and which instances are meant by it."""

from __future__ import annotations

from lmkv.controller.instance import Instance, differs
from lmkv.controller.prompts import unsalted as _unsalted
from lmkv.controller.registry import Registry
from lmkv.core import wire
from lmkv.core.jobs import MOST_KEY
from lmkv.core.messages import KEYS_A_JOB, OPERATIONS, JobState, Refused, Submit

PULLS = ("copy", "move")
FORMS = ("tokens", "text", "messages")
# What an action fits: parts in these states.
FITTING = {"cancel": ("queued", "running"), "retry": ("failed", "cancelled")}
MOST_NAME = 256


def unfit(message: Submit, frames: list[bytes]) -> Refused | None:
    """WireError for frames that are no keys."""
    wrong = _wrong(message, frames)
    if wrong is None:
        return None
    field, text = wrong
    return Refused("field", f"{field}: {text}", field, message.request)


def _wrong(message: Submit, frames: list[bytes]) -> tuple[str, str] | None:
    """Field and what is allowed."""
    operation = message.operation
    if operation not in OPERATIONS:
        return "operation", f"{operation[:64]!r}; allowed is one of {', '.join(OPERATIONS)}"
    if len(message.id) > MOST_KEY or not message.id.isprintable():
        return "id", f"allowed are up to {MOST_KEY} printable characters"
    for field in ("instance", "source", "like", "model", "owner", "asked_by"):
        text = getattr(message, field)
        if len(text) > MOST_NAME or not text.isprintable():
            return field, f"allowed are up to {MOST_NAME} printable characters"
    return _wrong_prompt(message, frames) or _wrong_options(message)


def _wrong_prompt(message: Submit, frames: list[bytes]) -> tuple[str, str] | None:
    given = [name for name in (*FORMS, "whole") if getattr(message, name)]
    if frames:
        if not wire.counts(frames, wire.KEY_BYTES, limit=KEYS_A_JOB):
            return "keys", "there are none"
        given.append("keys")
    if len(given) != 1:
        names = f"{' and '.join(given)} are given" if given else "nothing is given"
        field = given[1] if given else "tokens"
        return field, f"allowed is one of {', '.join(FORMS)}, keys or whole; {names}"
    for field in ("salt", "lora"):
        if getattr(message, field) and given[0] in ("whole", "keys"):
            return field, f"{given[0]} is given, which says it all"
    return None


def _wrong_options(message: Submit) -> tuple[str, str] | None:
    operation = message.operation
    if operation in PULLS:
        if not message.instance:
            return "instance", f"{operation} needs one, to which it goes"
        if message.source == message.instance:
            return "source", f"{message.source!r} is where it goes"
        if message.whole and not message.source:
            return "source", f"{operation} of a whole instance needs one"
    elif message.source:
        return "source", f"only {' and '.join(PULLS)} have one, {operation} has not"
    if message.whole and not message.instance and operation != "clear":
        return "instance", f"whole needs one; {operation} is not done on all of them at once"
    if message.ttl and operation != "pin":
        return "ttl", f"only pin has one, {operation} has not"
    if message.owner and operation not in ("pin", "unpin"):
        return "owner", f"only pin and unpin have one, {operation} has not"
    if operation == "pin" and not message.ttl and not message.owner:
        return "ttl", "a pin ends by itself, or belongs to somebody: give ttl, or owner"
    return None


def unsalted(message: Submit) -> Refused | None:
    """Where a controller wants the salt of every prompt."""
    prompt = any(getattr(message, form) for form in FORMS)
    return _unsalted(message.request) if prompt and not message.salt else None


def places(registry: Registry, message: Submit) -> Refused | None:
    """Whether the instances that are named are there, and share."""
    for field in ("instance", "source"):
        name = getattr(message, field)
        found = registry.instances.get(name)
        if name and found is None:
            text = f"{field}: instance {name!r} is not known here"
            return Refused("unknown_instance", text, field, message.request)
        if found is not None and found.state == "dead":
            silence = registry.clock() - found.heard
            text = f"{field}: instance {name!r} is dead: it was not heard for {silence:.1f} s"
            return Refused("unavailable", text, field, message.request)
    if message.source:
        source, target = (registry.instances[n] for n in (message.source, message.instance))
        if source.group != target.group:
            differing = differs(source.registration, target.registration)
            text = f"source: {source.name!r} and {target.name!r} do not share: {differing} differs"
            return Refused("incompatible", text, "source", message.request)
    return None


def targets(registry: Registry, message: Submit, keys: bytes) -> list[Instance] | Refused:
    """The instances that do it; `keys` are those of the prompt."""
    named = registry.instances.get(message.instance)
    if message.instance and named is None:  # it left while another was asked for the text
        text = f"instance: instance {message.instance!r} is not known here"
        return Refused("unknown_instance", text, "instance", message.request)
    if message.whole:
        return [named] if named is not None else _everyone(registry, message)
    holders = registry.placement.holders_of_any(keys)
    source = registry.instances.get(message.source)
    if holders and (source is None or source in holders):
        return [named] if named is not None else holders
    if registry.state == "warming":
        if named is not None and (message.source or message.operation not in PULLS):
            return [named]  # it, or its source, knows itself what it has
        text = "who holds it is not known here yet: this controller is warming"
        return Refused("warming", text, request=message.request)
    who = "no instance" if not holders else f"source: instance {message.source!r}"
    field = next((form for form in FORMS if getattr(message, form)), "keys")
    count = len(keys) // wire.KEY_BYTES
    text = f"{who} holds a chunk of it ({count} looked for)"
    return Refused("unknown_prefix", text, field if not holders else "source", message.request)


def _everyone(registry: Registry, message: Submit) -> list[Instance] | Refused:
    """All that are not dead, of the model that is named."""
    model = message.model
    found = [
        each
        for each in registry.instances.values()
        if each.number >= 0 and model in ("", each.registration.model)
    ]
    if found:
        return found
    if model:
        text = f"model {model!r}: no instance serves it"
        return Refused("unknown_model", text, "model", message.request)
    return Refused("unknown_instance", "instance: none is registered", "instance", message.request)


def unfitting(job: JobState, action: str, request: int) -> Refused:
    """Why an action fits none of a job's parts."""
    if job.ended_age or job.state not in ("queued", "running"):
        text = f"job {job.id} has ended {job.ended_age:.0f} s ago: it is {job.state}"
        if action == "retry":
            text += "; what failed or was cancelled is tried again"
        return Refused("ended", text, "id", request)
    text = f"job {job.id} is {job.state}: what failed or was cancelled is tried again"
    return Refused("conflict", text, "id", request)
