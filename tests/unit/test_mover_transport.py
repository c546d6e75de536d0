"""What the mover looks for before it trusts NIXL: the library, its version, its own listeners."""

from __future__ import annotations

import socket
import sys

import pytest
from lmkv.mover import transport
from lmkv.mover.transport import (
    NixlError,
    check_listeners,
    check_ports,
    find_library,
    listeners,
)

from tests.ports import busy_ports


@pytest.fixture
def site(tmp_path, monkeypatch):
    """The only folder in which packages are found."""
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.setattr(sys, "path_importer_cache", {})

    def install(package: str, version: str, library: str = "") -> None:
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("raise SystemExit('imported')")
        (tmp_path / f"{package}-{version}.dist-info").mkdir()
        if library:
            (tmp_path / library).mkdir(exist_ok=True)
            (tmp_path / library / "libnixl_capi.so").write_bytes(b"")

    return install


def test_no_package_is_named(site):
    with pytest.raises(NixlError, match=r"NIXL is not installed: pip install 'lmkv\[nixl\]'"):
        find_library()


@pytest.mark.parametrize("folder", [".nixl_cu12.mesonpy.libs", "nixl_cu12.libs", "nixl_cu12"])
def test_the_library_lies_beside_the_package_which_is_not_imported(site, folder):
    site("nixl_cu12", "1.5.1", folder)
    path, package, version = find_library()
    assert path.endswith(f"{folder}/libnixl_capi.so")
    assert (package, version) == ("nixl_cu12", "1.5.1")
    assert "nixl_cu12" not in sys.modules


@pytest.mark.parametrize("version", ["1.5.0", "1.4.9", "1.6.0", "2.0.0", "unknown"])
def test_a_version_outside_the_tested_range_is_refused(site, version):
    site("nixl_cu13", version, "nixl_cu13.libs")
    with pytest.raises(NixlError, match=r"1\.5\.1 or newer and below 1\.6\.0"):
        find_library()


def test_listeners_are_this_process_own():
    before = listeners()
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert set(listeners()) - set(before) == {server.getsockname()[:2]}
        check_listeners("lo")
    assert listeners() == before


def test_a_listener_on_every_interface_is_found():
    with (
        socket.create_server(("0.0.0.0", 0)) as server,  # the fault to be found
        pytest.raises(NixlError, match=rf"listens on 0\.0\.0\.0:{server.getsockname()[1]}"),
    ):
        check_listeners("lo")


def test_an_interface_without_address_is_named():
    with pytest.raises(NixlError, match="data_interface 'nope0' has no address"):
        check_listeners("nope0")


def test_a_busy_range_of_ports_is_named():
    with busy_ports(4) as ports:
        with pytest.raises(
            NixlError, match=rf"data_ports = '{ports}': at 127\.0\.0\.1 fewer than 2"
        ):
            check_ports("lo", ports)
        check_ports("nope0", ports)  # is UCX's to name
    check_ports("lo", ports)


def test_addresses_read_as_people_write_them():
    assert transport._address("0100007F") == "127.0.0.1"
    assert transport._address("00000000000000000000000001000000") == "::1"
