"""How UCX is set up: by the environment of the process that loads it, which is never vLLM's.

UCX takes its environment over all else, and ignores misspelt names silently.
"""

from __future__ import annotations

from collections.abc import Mapping

TLS = {"": "", "tcp": "tcp,self", "cma": "cma,tcp,self"}  # UCX_TLS by the setting nixl_tls


def with_gpu(tls: str) -> str:
    """UCX_TLS where a process has memory of a GPU, which UCX knows for that only by `cuda_copy`.
    Not by `cuda_ipc`: peers on this host have a better way (DESIGN.md 5), and a READ between two
    agents here goes as one from another host."""
    return f"{tls},cuda_copy" if tls else "^cuda_ipc"


WITH_GPU = {
    # Else UCX takes for the host's what was allocated before it began, as it does not look.
    "UCX_MEMTYPE_CACHE": "n",
    "UCX_MEM_CUDA_HOOK_MODE": "none",  # of no use then, 0.3 s of start
}


def environment(interface: str, ports: str, tls: str, base: Mapping[str, str]) -> dict[str, str]:
    """`base` with UCX's part made anew. `ports` is first-last, `tls` UCX_TLS; "": UCX chooses."""
    kept = {k: v for k, v in base.items() if not k.startswith(("UCX_", "NIXL_"))}
    kept |= {
        "UCX_NET_DEVICES": interface,
        "UCX_TCP_PORT_RANGE": ports,
        # 8 KiB by default: a fifth of the rate, and a reader's death can kill the holder's mover.
        "UCX_TCP_TX_SEG_SIZE": "512k",
        "UCX_TCP_RX_SEG_SIZE": "512k",
        "UCX_MEM_MMAP_HOOK_MODE": "none",  # 0.4 s of start
        "UCX_LOG_LEVEL": "fatal",  # lmkv says what failed, once, in its own words
        "NIXL_LOG_LEVEL": "FATAL",
    }
    if tls:
        kept["UCX_TLS"] = tls
    return kept
