"""`lmkv doctor`: each trouble is named, with what mends it, and nothing is changed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from lmkv.cli import cluster_checks, host_checks
from lmkv.cli.host_checks import FAIL, OK, WARN, Check
from lmkv.core.config import InstanceConfig, load
from lmkv.core.messages import InstanceState, StatusInfo
from lmkv.mover.probe import transports

# What UCX prints of a way to read, with UCX_PROTO_INFO=y: two tables, of which the second counts.
SAID = """\
+---------------------------+-----------------------------------------------+
| p-pull intra-node cfg#1   | reconfigure by ucp_am_send* from host memory  |
+---------------------------+----------------------------+------------------+
|                 0..524272 | zero-copy                  | tcp/lo           |
+---------------------------+----------------------------+------------------+
+---------------------------+-----------------------------------------------+
| p-pull intra-node cfg#1   | remote memory read by ucp_get*(multi) to host |
+---------------------------+----------------------------+------------------+
|                    0..999 | software emulation         | tcp/eth0         |
|                 1000..inf | zero-copy                  | 50% on rc_mlx5/mlx5_0:1 and cma/memory |
+---------------------------+----------------------------+------------------+
+---------------------------+-----------------------------------------------+
| p-pull self cfg#0         | ucp_put                                       |
+---------------------------+----------------------------+------------------+
|                    0..inf | zero-copy                  | self/memory0     |
"""


def test_the_ways_that_ucx_reads_by() -> None:
    assert transports(SAID) == ["tcp/eth0", "rc_mlx5/mlx5_0:1", "cma/memory"]
    assert transports("") == []


def test_a_run_dir_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    check = host_checks.run_dir(load(InstanceConfig, {"run_dir": str(folder)}))
    assert (check.level, check.text) == (OK, f"{folder} will be made")
    assert not folder.parent.exists()
    folder.mkdir(parents=True, mode=0o755)
    check = host_checks.run_dir(load(InstanceConfig, {"run_dir": str(folder)}))
    assert (check.level, "mode is 0755" in check.text) == (FAIL, True)
    folder.chmod(0o700)
    assert host_checks.run_dir(load(InstanceConfig, {"run_dir": str(folder)})).level == OK


@pytest.mark.parametrize(
    ("settings", "said", "fix"),
    [
        ({"data_interface": "nope0"}, "'nope0' has no address", "one of"),
        ({"data_interface": "lo"}, "pulls by lo (127.0.0.1)", ""),
    ],
)
def test_the_network(settings: dict[str, str], said: str, fix: str) -> None:
    [check] = host_checks.network(load(InstanceConfig, settings))
    assert said in check.text and fix in check.fix
    assert (check.level == OK) == (not fix)


def test_a_pool_that_does_not_fit() -> None:
    [check] = host_checks.memory(load(InstanceConfig, {"pool_gib": 65536}))
    assert check.level == FAIL and "is more than" in check.text
    first = next(host_checks.memory(load(InstanceConfig, {"pool_gib": 0.25})))
    assert (first.level, first.text.endswith("a pool of 0.2 GiB for one rank")) == (OK, True)


@pytest.mark.parametrize(("limit", "level"), [(300, WARN), (4096, OK)])
def test_open_files(limit: int, level: str) -> None:
    script = (
        f"import resource as r; r.setrlimit(r.RLIMIT_NOFILE, ({limit}, 4096)); "
        "from lmkv.cli.host_checks import open_files; print(open_files().level)"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert ran.stdout == f"{level}\n", ran.stderr


def test_a_nixl_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Python that finds lmkv, and no NIXL beside it."""
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util as u; find = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name.startswith('nixl') else find(name, *a)\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    [check] = host_checks.nixl(load(InstanceConfig))
    assert check == Check(
        "NIXL", FAIL, "NIXL is not installed: pip install 'lmkv[nixl]'", "pip install 'lmkv[nixl]'"
    )


@pytest.mark.nixl
def test_nixl_reads_as_it_is_told_to() -> None:
    tested, ways = host_checks.nixl(load(InstanceConfig, {"nixl_tls": "tcp"}))
    assert (tested.level, tested.text.split()[0][:5]) == (OK, "nixl_")
    assert (ways.level, ways.text) == (OK, "reads a process on this host by tcp/lo")


# ------------------------------------------------------------------ the cluster


def info(*found: InstanceState) -> StatusInfo:
    return StatusInfo(0, "c", "x", 1, "ready", "1.0", 9, 0, 0, 0, 0, 0, 0, list(found))


def told(*found: InstanceState) -> list[tuple[str, str, str]]:
    return [(each.name, each.level, each.text) for each in cluster_checks.instances(info(*found))]


def test_instances_that_are_well() -> None:
    a = InstanceState("a", 1, "live", pullable=True, version="1.0")
    assert told(a) == [
        ("instances", OK, "1 live"),
        ("fingerprint", OK, "instances of the same model share with one another"),
    ]


def test_instances_that_are_not() -> None:
    assert told() == [("instances", WARN, "none is registered at x")]
    found = told(
        InstanceState("a", 1, "live", version="1.0"),
        InstanceState("b", 2, "dead", version="0.9"),
        InstanceState(
            "c", 3, "incompatible", pullable=True, differs="dtype", differs_from="a", version="1.0"
        ),
    )
    assert found == [
        ("instances", WARN, "1 dead, 1 incompatible, 1 live"),
        ("fingerprint", WARN, "c does not share: its dtype is not that of a"),
        ("instances", WARN, "peers cannot pull from a"),
        ("versions", WARN, "instances of lmkv 0.9 beside a controller of 1.0"),
    ]


@pytest.mark.parametrize(("low", "high", "level"), [(1, 1, WARN), (2, 3, FAIL), (0, 0, WARN)])
def test_releases_that_do_not_speak(low: int, high: int, level: str) -> None:
    other = info()
    other.protocol_min, other.protocol_max = low, high
    assert cluster_checks._protocol("tcp://h:1", other).level == level


def test_a_name_that_is_not_known() -> None:
    config = load(InstanceConfig, {"controllers": "dns+tcp://nobody.invalid:7550"})
    [check] = cluster_checks.controllers(config, "")
    assert check.level == FAIL and "nobody.invalid" in check.text
