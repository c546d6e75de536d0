"""What the probe of a GPU's memory has found (gpu_probe.py), and whether that is fast enough."""

from __future__ import annotations

import msgspec

LEAST = 0.25  # of the link (DESIGN.md 5)


class Measured(msgspec.Struct, frozen=True):
    gpu: float = 0.0  # bytes a second, from the GPU's memory to the GPU's memory
    host: float = 0.0  # from the host's to the host's, the same way
    error: str = ""  # why there is no rate


def refusal(found: Measured, link: float | None, judged: bool = True) -> str:
    """Why peers may not pull, in a sentence; "": they may. `link`: what the data interface is made
    for, in bytes a second; None: the system does not say, and the host's own rate stands for it.
    `judged`: by their rate too."""
    if found.error:
        return f"the pool in the GPU's memory is not pullable: {found.error}"
    limit, whose = (link, "link") if link else (found.host, "path between hosts' memory")
    if not judged or found.gpu >= LEAST * limit:
        return ""
    return (
        f"the pool in the GPU's memory is not pullable: NIXL reads such memory at"
        f" {found.gpu / 1e9:.2f} GB/s, less than a quarter of the {limit / 1e9:.2f} GB/s of the"
        f" {whose}; engines on this host read it where it is"
    )
