"""Whether peers may pull from a GPU's memory: what the probe found, beside the link."""

from __future__ import annotations

from pathlib import Path

import pytest
from lmkv.core.interfaces import is_rdma, link_rate
from lmkv.mover import gpu
from lmkv.mover.measured import Measured, refusal

GB = 1e9


@pytest.mark.parametrize(
    ("reads", "host", "link", "why"),
    [
        (10, 40, 40, ""),
        (9.9, 40, 40, "at 9.90 GB/s, less than a quarter of the 40.00 GB/s of the link"),
        (9.9, 99, 39, ""),  # what the card is made for counts, where it is known
        (3, 12, None, ""),
        (2.9, 12, None, "a quarter of the 12.00 GB/s of the path between hosts' memory"),
    ],
)
def test_a_quarter_of_the_link(reads: float, host: float, link: float | None, why: str) -> None:
    found = refusal(Measured(reads * GB, host * GB), link and link * GB)
    assert (why in found) if why else not found
    assert not refusal(Measured(reads * GB, host * GB), link and link * GB, judged=False)


def test_a_probe_that_failed_says_why() -> None:
    said = "the pool in the GPU's memory is not pullable: no driver"
    for judged in (True, False):
        assert refusal(Measured(9 * GB, 1 * GB, "no driver"), None, judged) == said


def test_what_a_link_is_made_for(tmp_path: Path) -> None:
    for path, text in {
        "net/eth0/speed": "25000\n",
        "net/down/speed": "-1\n",
        "infiniband/mlx5_0/ports/1/rate": "200 Gb/sec (4X HDR)\n",
    }.items():
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).write_text(text)
    assert link_rate("eth0", tmp_path) == 25e9 / 8
    assert link_rate("mlx5_0:1", tmp_path) == link_rate("eth0,mlx5_0:1", tmp_path) == 200e9 / 8
    assert link_rate("lo", tmp_path) is link_rate("down", tmp_path) is None
    assert is_rdma("mlx5_0:1", tmp_path) and is_rdma("mlx5_0", tmp_path)
    assert not is_rdma("mlx5_0:2", tmp_path) and not is_rdma("eth0", tmp_path)


@pytest.mark.parametrize(
    ("program", "why"),
    [
        ("raise SystemExit(3)", "its probe ended without an answer, with status 3"),
        ("print(1)", "its probe ended without an answer, with status 0"),
        ("import time; time.sleep(60)", "its probe did not end in 0.5 s"),
    ],
)
def test_a_probe_that_does_not_answer(
    program: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """UCX may end a process that it cannot serve."""
    (tmp_path / "lmkv" / "mover").mkdir(parents=True)
    for folder in ("lmkv", "lmkv/mover"):
        (tmp_path / folder / "__init__.py").touch()
    (tmp_path / "lmkv" / "mover" / "gpu_probe.py").write_text(program)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(gpu, "PROBE_DEADLINE", 0.5 if "sleep" in program else 60.0)
    assert gpu.measured().error == why
