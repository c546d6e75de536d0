"""How large a pool may be, and what its host lacks."""

from pathlib import Path

import pytest
from lmkv.core import pool_size
from lmkv.core.pool_size import GIB, DoesNotFit, lacks, pool_slots


class Host:
    """A /proc and a /sys/fs/cgroup of our own."""

    def __init__(self, folder: Path) -> None:
        self.proc, self.cgroups = folder / "proc", folder / "cgroup"
        self.memory(64)
        self.write(self.proc / "self/cgroup", "0::/\n")

    def write(self, path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def memory(self, gib: float) -> None:
        self.write(
            self.proc / "meminfo",
            f"MemTotal: 99999999 kB\nMemAvailable: {int(gib * (1 << 20))} kB\n",
        )

    def v2(self, path: str, most: float | None, used: float, cache: float = 0) -> None:
        folder = self.cgroups / path
        self.write(folder / "memory.max", "max\n" if most is None else f"{int(most * GIB)}\n")
        self.write(folder / "memory.current", f"{int(used * GIB)}\n")
        self.write(folder / "memory.stat", f"anon 1\ninactive_file {int(cache * GIB)}\n")

    def v1(self, path: str, most: float | None, used: float, cache: float = 0) -> None:
        folder = self.cgroups / "memory" / path
        limit = 9223372036854771712 if most is None else int(most * GIB)
        self.write(folder / "memory.limit_in_bytes", f"{limit}\n")
        self.write(folder / "memory.usage_in_bytes", f"{int(used * GIB)}\n")
        self.write(folder / "memory.stat", f"total_inactive_file {int(cache * GIB)}\n")

    def gib(self, pool_gib: float | None = None, ranks: int = 1) -> float:
        mib = 1 << 20
        return pool_slots(pool_gib, ranks, mib, self.proc, self.cgroups) * mib / GIB


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_a_quarter_of_what_is_available(host: Host) -> None:
    assert host.gib() == 16
    assert host.gib(ranks=4) == 4


def test_at_most_64_gib_unless_asked_for(host: Host) -> None:
    host.memory(1000)
    assert host.gib() == 64
    assert host.gib(pool_gib=100) == 100


def test_a_control_group_is_the_limit(host: Host) -> None:
    host.write(host.proc / "self/cgroup", "0::/user/vllm\n")
    host.v2("user/vllm", None, 1)
    host.v2("user", 20, 9, cache=1)  # the parent's limit; its page cache can go
    assert host.gib() == 3
    host.v2("user/vllm", 8, 4)
    assert host.gib() == 1


def test_a_control_group_of_version_1(host: Host) -> None:
    host.write(host.proc / "self/cgroup", "5:cpu,cpuacct:/x\n4:memory:/docker/abc\n")
    host.v1("", 16, 5, cache=1)  # a container: the path is the host's, the limit is at the root
    assert host.gib() == 3
    host.v1("", None, 5)
    assert host.gib() == 16


def test_a_host_without_control_groups(host: Host) -> None:
    (host.proc / "self/cgroup").unlink()
    assert host.gib() == 16


def test_a_pool_that_does_not_fit_is_one_sentence(host: Host) -> None:
    with pytest.raises(DoesNotFit) as caught:
        host.gib(pool_gib=33, ranks=2)
    assert str(caught.value) == (
        "pool_gib: 33 GiB for each of 2 ranks on this host is more than the 64.00 GiB that memory"
        " leaves; at most 32.00 is possible"
    )
    assert host.gib(pool_gib=32, ranks=2) == 32


def test_the_control_group_that_is_too_small_is_named(host: Host) -> None:
    host.v2("", 1, 0.5)
    with pytest.raises(DoesNotFit, match=r"the 0\.50 GiB that the control group .*/cgroup leaves"):
        host.gib(pool_gib=2)


def test_under_a_quarter_gib_there_is_no_pool(host: Host) -> None:
    host.memory(0.99)
    with pytest.raises(DoesNotFit, match=r"a pool of 0\.25 GiB \(a quarter of .*\) is under"):
        host.gib()
    host.memory(1)
    assert host.gib() == 0.25
    with pytest.raises(DoesNotFit, match=r"a pool of 0\.20 GiB \(as pool_gib says\) is under"):
        host.gib(pool_gib=0.2)


def test_a_pool_smaller_than_a_slot(host: Host) -> None:
    with pytest.raises(DoesNotFit, match="holds no slot of 2147483648 bytes"):
        pool_slots(1, 1, 2 * GIB, host.proc, host.cgroups)


def test_this_host_says_what_it_has() -> None:
    left, limit = pool_size.available_bytes()
    assert left > 0
    assert limit


@pytest.mark.parametrize(
    ("slots", "slot_bytes", "expected"),
    [(1000, 32 << 20, 32), (3, 32 << 20, 3), (4, 2 * GIB, 1), (10_000, (32 << 20) + 65536, 31)],
)
def test_segments_of_at_most_one_gib(slots: int, slot_bytes: int, expected: int) -> None:
    assert pool_size.segment_slots(slots, slot_bytes) == expected


# ---------------------------------------------------------------- what the host lacks


@pytest.fixture
def huge_pages(tmp_path: Path) -> Path:
    path = tmp_path / "shmem_enabled"
    path.write_text("always within_size [advise] never deny force\n")
    return path


def test_a_host_that_gives_all(huge_pages: Path) -> None:
    assert lacks(GIB, -1, huge_pages) == []
    assert lacks(GIB, GIB, huge_pages) == []


@pytest.mark.parametrize("chosen", ["never", "deny"])
def test_huge_pages_are_often_absent(huge_pages: Path, chosen: str) -> None:
    huge_pages.write_text(f"always within_size advise [{chosen}] force\n")
    (sentence,) = lacks(GIB, -1, huge_pages)
    assert "no huge pages" in sentence and f"shmem_enabled is {chosen}" in sentence
    huge_pages.unlink()  # a kernel without them
    assert "shmem_enabled is not there" in lacks(GIB, -1, huge_pages)[0]


def test_the_limit_of_locked_memory_is_named(huge_pages: Path) -> None:
    (sentence,) = lacks(GIB, 8 << 20, huge_pages)
    assert "RLIMIT_MEMLOCK is 8 MiB, less than the pool" in sentence
    assert len(lacks(GIB, 0, huge_pages.with_name("none"))) == 2
