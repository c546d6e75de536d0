"""On which GPU the kernels last ran, as they are now: tests/gpu/certified.json.

A run of the GPU tests on a real card records its name, the date and the digest of kernels/.
`told()` is the line that `make test` ends with. Nothing is certified by a CPU.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CERTIFIED = ROOT / "tests/gpu/certified.json"
SUFFIXES = {".h", ".cu", ".flags"}


@dataclass(frozen=True)
class Certificate:
    """None in all three: never."""

    card: str | None
    date: str | None  # YYYY-MM-DD
    kernels: str | None


def digest(folder: Path = ROOT / "kernels") -> str:
    """Of the names and bytes of what nvcc compiles, 16 hex digits."""
    total = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in SUFFIXES:
            content = path.read_bytes()
            total.update(f"{path.name}\0{len(content)}\0".encode() + content)
    return total.hexdigest()[:16]


def load(path: Path = CERTIFIED) -> Certificate:
    return Certificate(**json.loads(path.read_text()))


def record(card: str, date: str, path: Path = CERTIFIED) -> None:
    """For the GPU tests, when all of them have passed on a real card."""
    path.write_text(json.dumps(asdict(Certificate(card, date, digest())), indent=2) + "\n")


def told(certificate: Certificate, now: str) -> str:
    """In one line, what is known about kernels of digest `now`."""
    last = f"{certificate.card} on {certificate.date}"
    if certificate.kernels is None:
        return f"GPU kernels ({now}): never run on a real GPU; only compiled, and run on a CPU"
    if certificate.kernels != now:
        return (
            f"GPU kernels ({now}): CHANGED since their last run on a real GPU "
            f"({certificate.kernels}, {last}); only compiled, and run on a CPU"
        )
    return f"GPU kernels ({now}): passed on {last}"
