"""Which registrations a controller takes: of its protocol and cluster, and with sound fields."""

from __future__ import annotations

from lmkv.controller.instance import Instance, unreadable
from lmkv.core.geometry import unfit_ranks
from lmkv.core.messages import PROTOCOL_MAX, PROTOCOL_MIN, Refused, Register


def unfit(message: Register, cluster: str, here: Instance | None) -> Refused | None:
    """Why it is not taken. `here` is who has registered on its connection before."""
    ours = f"{PROTOCOL_MIN} to {PROTOCOL_MAX}"
    if message.protocol_max < PROTOCOL_MIN or message.protocol_min > PROTOCOL_MAX:
        text = f"protocol {message.protocol_min} to {message.protocol_max}: this is {ours}"
        return Refused("protocol", text, "protocol_min")
    if message.cluster != cluster:
        text = f"cluster {message.cluster!r}: this controller serves {cluster!r}"
        return Refused("cluster", text, "cluster")
    if here is not None and here.name != message.instance:
        text = f"instance {message.instance!r}: this connection is {here.name!r}'s"
        return Refused("field", text, "instance")
    if not message.instance.isprintable():  # it is shown to people and in metrics
        text = f"instance {message.instance!r}: its name must have printable characters only"
        return Refused("field", text, "instance")
    for field, texts in (("namespace", [message.namespace]), ("layouts", message.layouts)):
        if (wrong := unreadable(texts)) is not None:
            return Refused("field", f"{field}: {wrong}", field)
    if (wrong := unfit_ranks(message.ranks)) is not None:
        return Refused("field", f"ranks: {wrong}", "ranks")
    return None
