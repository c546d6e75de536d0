"""What `lmkv doctor` looks at in the cluster: controllers, and the instances that they know."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator

from lmkv import __version__
from lmkv.cli import access
from lmkv.cli.common import REFUSED, UNREACHABLE, Trouble, question
from lmkv.cli.host_checks import FAIL, OK, WARN, Check
from lmkv.core.config import NAMES, InstanceConfig, split_address
from lmkv.core.messages import PROTOCOL_MAX, PROTOCOL_MIN, InstanceState, Status, StatusInfo
from lmkv.core.records import records

SHOWN = 5  # instances by name
NAME = "controller"


def controllers(config: InstanceConfig, given: str) -> Iterator[Check]:
    """Asked with the keys that an instance here would have, where the command was given none."""
    access.given.keys = access.given.keys or config.keys
    addresses = [given] if given else config.controllers
    infos = []
    for address in addresses:
        try:
            found = _resolved(address)
        except (OSError, UnicodeError) as error:
            text = f"{address}: {getattr(error, 'strerror', None) or error}"
            yield Check(NAME, FAIL, text, "mend the name, or the setting controllers")
            continue
        for each in found:
            check, info = _controller(each, config.cluster)
            yield check
            if info is not None:
                infos.append(info)
                yield _protocol(each, info)
    if infos:
        yield from instances(infos[0])


def _resolved(address: str) -> list[str]:
    """A controller at each record of a `dns+` name. Raises OSError, UnicodeError."""
    if not address.startswith(NAMES):
        return [address]
    return records(*split_address(address.removeprefix(NAMES)))


def _controller(address: str, cluster: str) -> tuple[Check, StatusInfo | None]:
    began = time.monotonic()
    try:
        info = question(address, Status(1), StatusInfo)
    except Trouble as trouble:
        fixes = {
            UNREACHABLE: "start one with `lmkv controller`, or mend --controller or controllers",
            REFUSED: "set LMKV_TOKEN",
        }
        fix = fixes.get(trouble.status, "mend --controller or the setting controllers")
        return Check(NAME, FAIL, str(trouble), fix), None
    took = (time.monotonic() - began) * 1000
    text = f"{info.controller} at {address}, cluster {info.cluster}, {info.state}, {took:.0f} ms"
    if info.cluster != cluster:
        fix = f"set cluster: {info.cluster}, or another controller"
        return Check(NAME, FAIL, f"{text}; this host's cluster is {cluster}", fix), info
    if info.state != "ready":
        return Check(NAME, WARN, text, "wait: it learns who holds what in seconds"), info
    return Check(NAME, OK, text), info


def _protocol(address: str, info: StatusInfo) -> Check:
    low, high = info.protocol_min or 1, info.protocol_max or 1
    text = f"lmkv {info.version} speaks protocol {low}-{high}, "
    text += f"this one ({__version__}) {PROTOCOL_MIN}-{PROTOCOL_MAX}"
    if low > PROTOCOL_MAX or high < PROTOCOL_MIN:
        older = "here" if low > PROTOCOL_MAX else f"at {address}"
        return Check("versions", FAIL, text, f"pip install --upgrade lmkv {older}")
    if info.version != __version__:
        return Check("versions", WARN, text, "end the upgrade: one release everywhere")
    return Check("versions", OK, text)


def instances(info: StatusInfo) -> Iterator[Check]:
    name = "instances"
    states = Counter(each.state for each in info.instances)
    if not states:
        fix = "start vLLM with LmkvConnector, and this address in its controllers"
        yield Check(name, WARN, f"none is registered at {info.controller}", fix)
        return
    silent = [each for each in info.instances if each.state in ("suspect", "dead")]
    text = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
    if silent:
        fix = f"look at {_named(silent)}: are they running, is the network there?"
        yield Check(name, WARN, text, fix)
    else:
        yield Check(name, OK, text)
    differing = [each for each in info.instances if each.differs]
    if not differing:
        yield Check("fingerprint", OK, "instances of the same model share with one another")
    for each in differing[:SHOWN]:
        text = f"{each.instance} does not share: its {each.differs} is not that of "
        fix = f"start it with the same {each.differs}; `lmkv describe instance {each.instance}`"
        yield Check("fingerprint", WARN, text + each.differs_from, fix)
    unpulled = [each for each in info.instances if each.state == "live" and not each.pullable]
    if unpulled:
        fix = "run `lmkv doctor` there: NIXL is missing or does not work"
        yield Check(name, WARN, f"peers cannot pull from {_named(unpulled)}", fix)
    old = sorted({each.version for each in info.instances if each.version} - {info.version})
    if old:
        text = f"instances of lmkv {', '.join(old[:SHOWN])} beside a controller of {info.version}"
        yield Check("versions", WARN, text, "end the upgrade: one release everywhere")


def _named(some: list[InstanceState]) -> str:
    more = f" and {len(some) - SHOWN} more" if len(some) > SHOWN else ""
    return ", ".join(each.instance for each in some[:SHOWN]) + more
