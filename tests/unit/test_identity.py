"""Identity: names, epochs, the runtime folder and the fingerprint of weights."""

import json
import os
import re
import shutil
import struct

import pytest
from lmkv.core import identity
from lmkv.core.identity import lines, run_dir, weights_fingerprint


def write_shard(path, tensors):
    """A safetensors file of u8 tensors, by hand."""
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, data in tensors.items():
        header[name] = {"dtype": "U8", "shape": [len(data)], "data_offsets": [at, at + len(data)]}
        at += len(data)
    raw = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + b"".join(tensors.values()))


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    write_shard(folder / "a.safetensors", {"w": bytes(100_000), "b": bytes(50)})
    write_shard(folder / "b.safetensors", {"v": bytes(9_000)})
    return folder


def test_lines_are_sorted_and_read_back():
    assert lines({"b": "2=two", "a": "1"}) == "a=1\nb=2=two\n"
    for fields in ({"a=b": "1"}, {"a\n": "1"}, {"": "1"}, {"a": "1\nb=2"}):
        with pytest.raises(ValueError, match="must not"):
            lines(fields)


def test_the_fingerprint_is_of_the_content_not_of_paths_and_names(model, tmp_path):
    fingerprint = weights_fingerprint(model)
    assert re.fullmatch("[0-9a-f]{64}", fingerprint)
    copy = tmp_path / "elsewhere"
    shutil.copytree(model, copy)
    (copy / "a.safetensors").rename(copy / "model-00002-of-00002.safetensors")
    assert weights_fingerprint(copy) == fingerprint


@pytest.mark.parametrize("at", [0, 4_095, 50_000, 99_999, 100_049])
def test_one_changed_weight_changes_the_fingerprint(model, at):
    before = weights_fingerprint(model)
    shard = model / "a.safetensors"
    data = bytearray(shard.read_bytes())
    begin = 8 + struct.unpack("<Q", data[:8])[0]
    data[begin + at] ^= 1
    shard.write_bytes(data)
    assert weights_fingerprint(model) != before


def test_a_renamed_tensor_and_a_missing_shard_change_the_fingerprint(model):
    before = weights_fingerprint(model)
    (model / "b.safetensors").unlink()
    without = weights_fingerprint(model)
    write_shard(model / "b.safetensors", {"u": bytes(9_000)})
    assert len({before, without, weights_fingerprint(model)}) == 3


def test_what_is_not_whole_is_refused(model, tmp_path):
    with pytest.raises(ValueError, match=r"no \*.safetensors file"):
        weights_fingerprint(tmp_path)
    shard = model / "a.safetensors"
    whole = shard.read_bytes()
    for cut, why in [(4, "not a whole"), (40, "not a whole"), (5_000, "a tensor ends at 100000")]:
        shard.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match=why):
            weights_fingerprint(model)
    shard.write_bytes(struct.pack("<Q", 5) + b"[1,2]")
    with pytest.raises(ValueError, match="header is not understood"):
        weights_fingerprint(model)


def test_instance_ids(monkeypatch):
    monkeypatch.setattr(identity.socket, "gethostname", lambda: "node7")
    assert re.fullmatch("node7-[0-9a-f]{8}", identity.instance_id("", "engine"))
    assert identity.instance_id("", "engine") != identity.instance_id("", "engine2")
    assert identity.instance_id("", "abc_dp1").endswith("-dp1")
    assert identity.instance_id("mine", "abc") == "mine"
    assert identity.instance_id("mine", "abc_dp0") == "mine-dp0"


def test_socket_names_are_short_and_tell_instances_and_ranks_apart():
    names = {
        identity.socket_name(instance, engine, rank, "share")
        for instance in ("a", "b")
        for engine in ("x", "y")
        for rank in (0, 1)
    }
    assert len(names) == 8
    assert all(re.fullmatch(r"[0-9a-f]{8}-[01]\.share", name) for name in names)


def test_epochs_differ_and_their_low_half_is_never_zero(monkeypatch):
    assert identity.new_epoch() != identity.new_epoch()
    drawn = iter([7 << 32, 0, 5 << 32 | 1])
    monkeypatch.setattr(identity.secrets, "randbits", lambda bits: next(drawn))
    assert identity.new_epoch() == 5 << 32 | 1


def test_run_dir_takes_the_first_of_its_places(tmp_path, monkeypatch):
    monkeypatch.setenv("LMKV_RUN_DIR", str(tmp_path / "env"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "xdg"))
    monkeypatch.setattr(identity.tempfile, "gettempdir", lambda: str(tmp_path / "tmp"))
    assert run_dir(str(tmp_path / "given")) == tmp_path / "given"
    assert run_dir() == tmp_path / "env"
    monkeypatch.delenv("LMKV_RUN_DIR")
    assert run_dir() == tmp_path / "xdg" / "lmkv"
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert run_dir() == tmp_path / "tmp" / f"lmkv-{os.getuid()}"
    assert (run_dir().stat().st_mode & 0o777) == 0o700
    assert run_dir() == run_dir()  # it is there already


def test_run_dir_refuses_what_others_could_reach(tmp_path, monkeypatch):
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o750)
    with pytest.raises(ValueError, match="mode is 0750, must be 0700"):
        run_dir(str(shared))
    link = tmp_path / "link"
    link.symlink_to(run_dir(str(tmp_path / "mine")))
    with pytest.raises(ValueError, match="must be a folder, not a link or a file"):
        run_dir(str(link))
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"run_dir .*file"):
        run_dir(str(tmp_path / "file"))
    monkeypatch.setattr(identity.os, "getuid", lambda: 12345)
    with pytest.raises(ValueError, match="must be 12345"):
        run_dir(str(tmp_path / "mine"))


def test_host_identity_is_that_of_the_folder(tmp_path):
    one, two = run_dir(str(tmp_path / "1")), run_dir(str(tmp_path / "2"))
    assert identity.host_identity(one) == identity.host_identity(one) != identity.host_identity(two)
    assert len(identity.host_identity(one).boot_id) == 36
