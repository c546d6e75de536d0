"""How large a rank's pool may be, and what the host lacks for one of that size.

A worker sizes its pool with `pool_slots`, cuts it by `segment_slots`, and says what is in `lacks`.
All read the host's files, which tests replace by folders of their own.
"""

from __future__ import annotations

import re
from pathlib import Path

GIB, MIB = 1 << 30, 1 << 20
SEGMENT_BYTES = GIB
POOL_GIB_LEAST = 0.25
POOL_GIB_MOST = 64.0  # by default; an operator may ask for more
POOL_SHARE = 0.25  # of what memory and control groups leave, by default
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled")


class DoesNotFit(ValueError):
    """There is no room for a pool; the text is one sentence for people."""


def pool_slots(
    pool_gib: float | None,
    ranks_on_host: int,
    slot_bytes: int,
    proc: Path = Path("/proc"),
    cgroups: Path = Path("/sys/fs/cgroup"),
) -> int:
    """Slots of one rank's pool: `pool_gib` of memory, or a fair share of what the host leaves.

    Raises DoesNotFit when a given `pool_gib` is more than is left, or the pool would be under 0.25
    GiB or hold no slot.
    """
    left, limit = available_bytes(proc, cgroups)
    room = left / ranks_on_host / GIB
    if pool_gib is None:
        size = min(room * POOL_SHARE, POOL_GIB_MOST)
        why = f"a quarter of the {left / GIB:.2f} GiB that {limit} leaves"
        why += f" to {ranks_on_host} ranks" if ranks_on_host > 1 else ""
    else:
        size, why = pool_gib, "as pool_gib says"
        if size > room:
            raise DoesNotFit(
                f"pool_gib: {size:g} GiB for each of {ranks_on_host} ranks on this host is more"
                f" than the {left / GIB:.2f} GiB that {limit} leaves;"
                f" at most {room:.2f} is possible"
            )
    if size < POOL_GIB_LEAST:
        raise DoesNotFit(
            f"pool_gib: a pool of {size:.2f} GiB ({why}) is under the least, {POOL_GIB_LEAST} GiB;"
            " free memory, raise the limit or set pool_gib"
        )
    slots = int(size * GIB) // slot_bytes
    if slots == 0:
        raise DoesNotFit(
            f"pool_gib: a pool of {size:.2f} GiB ({why}) holds no slot of {slot_bytes} bytes"
        )
    return slots


def segment_slots(slots: int, slot_bytes: int) -> int:
    """Slots per memory segment of at most 1 GiB; a slot never crosses two segments."""
    return min(slots, max(1, SEGMENT_BYTES // slot_bytes))


def available_bytes(
    proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")
) -> tuple[int, str]:
    """Bytes that can still be taken, and what sets that limit (for a sentence)."""
    match = re.search(r"^MemAvailable:\s+(\d+) kB", (proc / "meminfo").read_text(), re.MULTILINE)
    if match is None:
        raise DoesNotFit(f"pool_gib: {proc / 'meminfo'} does not say MemAvailable")
    least, limit = int(match[1]) * 1024, "memory"
    for folder, names in _groups(proc, cgroups):
        left = _group_left(folder, *names)
        if left is not None and left < least:
            least, limit = left, f"the control group {folder}"
    return least, limit


_V2 = ("memory.max", "memory.current", "inactive_file")
_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def _groups(proc: Path, cgroups: Path) -> list[tuple[Path, tuple[str, str, str]]]:
    """Folders of this process's memory control groups, from its own up, and their files' names."""
    try:
        text = (proc / "self/cgroup").read_text()
    except OSError:
        return []
    found = []
    for line in text.splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, names = cgroups, _V2
        elif "memory" in controllers.split(","):
            root, names = cgroups / "memory", _V1
        else:
            continue
        # In a container the path may be the host's: what does not exist there is passed over.
        folder = root / path.strip("/")
        while folder != root:
            found.append((folder, names))
            folder = folder.parent
        found.append((root, names))
    return found


def _group_left(folder: Path, limit: str, usage: str, cache: str) -> int | None:
    try:
        most = (folder / limit).read_text().strip()
        used = int((folder / usage).read_text())
        stat = (folder / "memory.stat").read_text()
    except OSError:
        return None
    if most == "max" or int(most) >= 1 << 62:  # v1 says "no limit" as a huge number
        return None
    match = re.search(rf"^{cache} (\d+)$", stat, re.MULTILINE)
    return max(0, int(most) - used + (int(match[1]) if match else 0))


def lacks(pool_bytes: int, memlock: int, huge_pages: Path = HUGE_PAGES) -> list[str]:
    """What the host does not give a pool of this size, and what that costs; it works all the same.
    `memlock` is the limit of locked bytes (RLIMIT_MEMLOCK), -1 for none."""
    found = []
    try:
        chosen = re.search(r"\[(\w+)\]", huge_pages.read_text())
    except OSError:
        chosen = None
    if chosen is None or chosen[1] in ("never", "deny"):
        state = f"{huge_pages} is {chosen[1]}" if chosen else f"{huge_pages} is not there"
        found.append(f"it has no huge pages, so that copies take longer ({state})")
    if 0 <= memlock < pool_bytes:
        found.append(
            f"RLIMIT_MEMLOCK is {memlock / MIB:g} MiB, less than the pool, so that without"
            f" CAP_IPC_LOCK no RDMA device can register it"
        )
    return found
