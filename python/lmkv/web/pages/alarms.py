"""What must not be, one sentence each: the red bar of the overview."""

from __future__ import annotations

from lmkv.web.pages.watch import Watch


def alarms(watch: Watch) -> list[str]:
    info = watch.status
    if info is None:
        return []
    drifts, digest = watch.grown()
    found = []
    if drifts:
        found.append(
            f"Drift: {drifts} heartbeats of the last 5 minutes differed from the directory; a full "
            f"sync mends each. The events name the instances."
        )
    if digest:
        found.append(
            f"Digest: {digest} tokens of the last 5 minutes were computed again, since what was "
            f"read for them was not what had been stored."
        )
    if {*info.versions} - {info.version}:
        told = ", ".join(f"{version or 'unknown'} ({n})" for version, n in info.versions.items())
        found.append(f"Version skew: instances run {told}; the controller runs {info.version}.")
    found += [
        f"{each.instance} shares nothing with {each.differs_from}: they differ in {each.differs}."
        for each in watch.incompatible
    ]
    more = info.states.get("incompatible", 0) - len(watch.incompatible)
    if watch.incompatible and more > 0:
        found.append(f"{more} more instances are incompatible.")
    return found
