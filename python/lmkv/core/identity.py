"""Who and where: instance ids, epochs, hosts, `run_dir`, and what weights a folder holds.

Texts that become part of a key are canonical: `lines()` writes them, BLAKE3 shortens them, and
nothing depends on `hash()`, dictionary order or a path.
"""

from __future__ import annotations

import os
import re
import secrets
import socket
import stat
import struct
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from lmkv import _native
from lmkv.core.messages import HostIdentity

SAMPLE_BYTES = 4096
DATA_PARALLEL = re.compile(r"_dp(\d+)$")  # the end of an engine id


def lines(fields: Mapping[str, str]) -> str:
    """`name=value` lines, sorted by name. ValueError for a text that would not read back."""
    for name, value in fields.items():
        if not name or "=" in name or "\n" in name:
            raise ValueError(f"field name {name!r}: must not be empty or hold '=' or a newline")
        if "\n" in value:
            raise ValueError(f"field {name}: its value {value!r} must not hold a newline")
    return "".join(f"{name}={fields[name]}\n" for name in sorted(fields))


def short(text: str) -> str:
    """8 hex digits of a text's BLAKE3, for names of things."""
    return _native.blake3(text.encode()).hex()[:8]


def instance_id(configured: str, engine_id: str) -> str:
    """The configured name, or host name and 8 hex of the engine id; `-dpN` for a rank of data
    parallelism, which vLLM writes at the end of the engine id (`.._dpN`)."""
    rank = DATA_PARALLEL.search(engine_id)
    name = configured or f"{socket.gethostname()}-{short(engine_id)}"
    return f"{name}-dp{rank[1]}" if rank else name


def dp_rank(engine_id: str) -> int:
    """The engine's rank of data parallelism; vLLM's own setting is 0 in each of them."""
    rank = DATA_PARALLEL.search(engine_id)
    return int(rank[1]) if rank else 0


def socket_name(instance: str, engine_id: str, rank: int, kind: str) -> str:
    """File name of a rank's socket in `run_dir`, e.g. `1f0c77aa-0.share`."""
    return f"{short(f'{instance} {engine_id}')}-{rank}.{kind}"


def new_epoch() -> int:
    """A random 64-bit id of one life; its low 32 bits are never 0."""
    while True:
        epoch = secrets.randbits(64)
        if epoch & 0xFFFFFFFF:
            return epoch


def run_dir_path(path: str | None = None) -> Path:
    """Where the folder of this user's sockets is: `path`, else LMKV_RUN_DIR, else
    `$XDG_RUNTIME_DIR/lmkv`, else `lmkv-<uid>` in the temporary folder."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    chosen = path or os.environ.get("LMKV_RUN_DIR")
    if chosen:
        return Path(chosen)
    if runtime:
        return Path(runtime) / "lmkv"
    return Path(tempfile.gettempdir()) / f"lmkv-{os.getuid()}"


def run_dir(path: str | None = None) -> Path:
    """That folder, created 0700. ValueError if it cannot be had, belongs to another user, or is
    open to others."""
    folder = run_dir_path(path)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"run_dir {folder}: {error.strerror}") from error
    check_run_dir(folder)
    return folder


def check_run_dir(folder: Path) -> None:
    """ValueError unless it is this user's alone."""
    try:
        found = folder.lstat()
    except OSError as error:
        raise ValueError(f"run_dir {folder}: {error.strerror}") from error
    if not stat.S_ISDIR(found.st_mode):
        raise ValueError(f"run_dir {folder}: must be a folder, not a link or a file")
    if found.st_uid != os.getuid():
        raise ValueError(f"run_dir {folder}: belongs to uid {found.st_uid}, must be {os.getuid()}")
    if found.st_mode & 0o077:
        raise ValueError(f"run_dir {folder}: mode is {found.st_mode & 0o777:04o}, must be 0700")


def host_identity(folder: Path) -> HostIdentity:
    """Equal for two processes that can reach each other's sockets in `run_dir`."""
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    found = folder.stat()
    return HostIdentity(boot_id=boot_id, device=found.st_dev, inode=found.st_ino)


def weights_fingerprint(folder: Path) -> str:
    """64 hex digits for the safetensors shards of a folder, whatever their and its names are.

    Of each shard: its header, and 4 KiB at the start, middle and end of each tensor, in the file's
    order; then the shards' hashes, sorted. ValueError when there is none or one is not whole.
    """
    shards = sorted(folder.glob("*.safetensors"))
    if not shards:
        raise ValueError(f"{folder}: no *.safetensors file")
    hashes = sorted(_native.blake3(b"".join(_samples(shard))) for shard in shards)
    return _native.blake3(b"".join(hashes)).hex()


def _samples(shard: Path) -> Iterator[bytes]:
    size = shard.stat().st_size
    with shard.open("rb") as file:
        raw = file.read(8)
        length = struct.unpack("<Q", raw)[0] if len(raw) == 8 else size
        if length > size - 8:
            raise ValueError(f"{shard}: not a whole safetensors file")
        header = file.read(length)
        yield raw + header
        try:
            tensors = msgspec.json.decode(header, type=dict[str, dict[str, object]])
            tensors.pop("__metadata__", None)
            spans = sorted(
                msgspec.convert(t["data_offsets"], tuple[int, int]) for t in tensors.values()
            )
        except (msgspec.MsgspecError, KeyError) as error:
            raise ValueError(
                f"{shard}: its safetensors header is not understood: {error}"
            ) from error
        for begin, end in spans:
            if not 0 <= begin <= end <= size - 8 - length:
                raise ValueError(f"{shard}: a tensor ends at {end}, the file earlier")
            for at, count in _windows(end - begin):
                file.seek(8 + length + begin + at)
                yield file.read(count)


def _windows(size: int) -> list[tuple[int, int]]:
    """(offset, bytes) of a tensor's samples; all of a small one."""
    if size <= 3 * SAMPLE_BYTES:
        return [(0, size)]
    starts = (0, (size - SAMPLE_BYTES) // 2, size - SAMPLE_BYTES)
    return [(at, SAMPLE_BYTES) for at in starts]
