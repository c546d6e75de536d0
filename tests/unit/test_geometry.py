"""Layouts as text, who is compatible with whom, and how large a pool may be."""

import dataclasses
from pathlib import Path

import pytest
from blake3 import blake3
from lmkv.core import geometry
from lmkv.core.geometry import GIB, DoesNotFit, Layout, compatible, numbered, pool_slots

LAYOUT = Layout(
    chunk_tokens=256,
    dtype="bfloat16",
    page_format="cpu:vec:128",
    group=0,
    layers=[f"model.layers.{n}.self_attn.attn" for n in range(30)],
    head_size=64,
    kv_heads=8,
    first_head=4,
    heads=4,
    segment_bytes=256 * 64 * 2 * 2,
)
TEXT = """\
chunk_tokens=256
dtype=bfloat16
format_version=1
group=0
head_size=64
kv_heads=8
layers=model.layers.{0-29}.self_attn.attn
page_format=cpu:vec:128
rank_heads=4-7
segment_bytes=65536
segments=120
"""


def other(**change: object) -> str:
    return dataclasses.replace(LAYOUT, **change).text()  # type: ignore[arg-type]


def test_the_text_is_canonical() -> None:
    assert LAYOUT.text() == TEXT
    assert geometry.fields(TEXT)["rank_heads"] == "4-7"


def test_the_fingerprint_is_blake3s() -> None:
    expected = int.from_bytes(blake3(TEXT.encode()).digest()[:8], "little")
    assert geometry.fingerprint(TEXT) == expected
    assert geometry.fingerprint(other(dtype="float16")) != expected


def test_slot_sizes_come_from_the_text() -> None:
    slot = geometry.slot_layout(TEXT)
    assert (slot.segments, slot.segment_bytes, slot.page_format) == (120, 65536, 2)
    assert slot.fingerprint == geometry.fingerprint(TEXT)
    assert geometry.slot_layout(other(page_format="tokens")).page_format == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("segments=1\nsegment_bytes=64\n", "it has no page_format"),
        ("segments=x\nsegment_bytes=64\npage_format=tokens\n", "segments=x is not a number"),
        ("segments=1\nsegment_bytes=65\npage_format=tokens\n", "segment_bytes: 65"),
        ("nonsense\n", "line 'nonsense' is not name=value"),
    ],
)
def test_a_bad_layout_is_named(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        geometry.slot_layout(text)


@pytest.mark.parametrize(
    ("names", "short"),
    [
        (["a.0.b", "a.1.b", "a.2.b"], "a.{0-2}.b"),
        (["a.0.b", "a.2.b"], "a.0.b,a.2.b"),
        (["a.1.b", "a.0.b"], "a.1.b,a.0.b"),  # the order of segments counts
        (["a.0.b", "a.1.c"], "a.0.b,a.1.c"),
        (["attn"], "attn"),
        ([], ""),
    ],
)
def test_layer_names_in_short(names: list[str], short: str) -> None:
    assert numbered(names) == short


def test_equal_instances_are_compatible() -> None:
    ranks = [other(first_head=0), other(first_head=4)]
    assert compatible(ranks, ranks) is None
    assert compatible(ranks, ranks, heads_apart=False) is None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("page_format", "cpu:amx:128"),
        ("page_format", "cpu:vec:32"),
        ("page_format", "tokens"),
        ("dtype", "float32"),
        ("head_size", 128),
        ("kv_heads", 16),
        ("chunk_tokens", 512),
        ("group", 1),
        ("layers", ["model.layers.0.self_attn.attn"]),
        ("segment_bytes", 128),
    ],
)
def test_what_differs_is_named(field: str, value: object) -> None:
    assert compatible([TEXT], [other(**{field: value})]) == field
    assert compatible([other(**{field: value})], [TEXT]) == field
    assert compatible([TEXT], [other(**{field: value})], heads_apart=False) == field


def test_the_first_field_by_name_is_named() -> None:
    assert compatible([TEXT], [other(dtype="float32", chunk_tokens=512)]) == "chunk_tokens"


def test_ranks_heads_are_apart() -> None:
    """TP 1 and TP 2 of one model read each other's segments."""
    one = [other(first_head=0, heads=8)]
    two = [other(first_head=0), other(first_head=4)]
    assert compatible(one, two) is None
    assert compatible(one, two, heads_apart=False) == "ranks"
    assert compatible([TEXT], [other(first_head=0)], heads_apart=False) == "rank_heads"


def test_pipeline_stages_have_each_their_layers() -> None:
    first, second = other(layers=["a.0.b"]), other(layers=["a.1.b"])
    assert compatible([first, second], [first, second]) is None
    assert compatible([first, second], [first]) == "layers"
    assert compatible([first], []) == "ranks"


def test_a_new_field_of_a_later_release_is_named() -> None:
    assert compatible([TEXT], [TEXT + "sharding=interleaved\n"]) == "sharding"


# ---------------------------------------------------------------- pool size


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
    left, limit = geometry.available_bytes()
    assert left > 0
    assert limit


@pytest.mark.parametrize(
    ("slots", "slot_bytes", "expected"),
    [(1000, 32 << 20, 32), (3, 32 << 20, 3), (4, 2 * GIB, 1), (10_000, (32 << 20) + 65536, 31)],
)
def test_segments_of_at_most_one_gib(slots: int, slot_bytes: int, expected: int) -> None:
    assert geometry.segment_slots(slots, slot_bytes) == expected
