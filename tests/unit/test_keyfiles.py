"""Keys and tokens on disk: modes, what is refused, and the sentences."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest
import zmq
from lmkv.core import keyfiles, tokens
from lmkv.core.keyfiles import BadKeys


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    keyfiles.make(tmp_path / "keys")
    return tmp_path / "keys"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def refused(sentence: str, call: object, *arguments: object) -> None:
    with pytest.raises(BadKeys) as error:
        call(*arguments)  # type: ignore[operator]
    assert sentence in str(error.value) and "\n" not in str(error.value)


def test_what_is_made_and_its_modes(folder: Path) -> None:
    assert mode(folder) == 0o700
    modes = {path.name: mode(path) for path in folder.iterdir()}
    assert modes == {
        "server.key": 0o600, "server.pub": 0o644, "client.key": 0o600, "data.key": 0o600,
        "clients": 0o600,
    }  # fmt: skip
    client, server = keyfiles.read_client(folder), keyfiles.read_pair(folder, "server")
    assert client.server == server.public
    assert keyfiles.read_clients(folder) == {client.public: "client"}
    pairs = [keyfiles.read_pair(folder, name) for name in ("server", "client", "data")]
    assert len({pair.secret for pair in pairs}) == 3


def test_modes_do_not_depend_on_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        keyfiles.make(tmp_path / "keys")
        tokens.add(tmp_path / "keys" / "tokens", "a", "read")
    finally:
        os.umask(before)
    for name in ("server.key", "client.key", "data.key", "clients", "tokens"):
        assert mode(tmp_path / "keys" / name) == 0o600
    assert mode(tmp_path / "keys") == 0o700


@pytest.mark.parametrize("name", ["server.key", "server.pub", "client.key", "data.key", "clients"])
def test_nothing_is_overwritten(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "keys"
    folder.mkdir(mode=0o700)
    (folder / name).write_text("mine")
    refused("nothing is overwritten", keyfiles.make, folder)
    assert [path.name for path in folder.iterdir()] == [name]
    assert (folder / name).read_text() == "mine"


@pytest.mark.parametrize("bits", [0o640, 0o604, 0o620, 0o602, 0o601])
def test_what_others_can_use_is_refused(folder: Path, bits: int) -> None:
    for name, read in (("client.key", keyfiles.read_client), ("clients", keyfiles.read_clients)):
        (folder / name).chmod(bits)
        refused(f"{folder / name}: mode is {bits:04o}", read, folder)


def test_a_folder_that_others_can_use_is_refused(tmp_path: Path) -> None:
    (tmp_path / "keys").mkdir(mode=0o755)
    refused("mode is 0755, must be 0700", keyfiles.make, tmp_path / "keys")


def test_keys_are_not_made_in_another_users_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "keys").mkdir(mode=0o700)
    owner = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: owner + 1)
    said = f"belongs to uid {owner}, must be {owner + 1}"
    refused(said, keyfiles.make, tmp_path / "keys")
    assert not list((tmp_path / "keys").iterdir())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "the lines public: KEY"),
        ("public: x\nsecret: y\n", "keys of 40 characters"),
        ("public: " + "#" * 40 + "\nsecret: " + "\x00" * 40, "keys of 40 characters"),
        ("\x80", "is not ASCII"),
        ("x" * ((1 << 20) + 1), "is longer than"),
    ],
)
def test_a_key_file_that_is_none(folder: Path, text: str, said: str) -> None:
    (folder / "client.key").write_text(text, encoding="latin-1")
    refused(said, keyfiles.read_client, folder)


def test_halves_of_two_pairs(folder: Path) -> None:
    one, other = keyfiles.new_pair(), keyfiles.new_pair()
    (folder / "client.key").unlink()
    keyfiles.write_pair(folder, "client", keyfiles.Pair(one.public, other.secret))
    refused("does not belong", keyfiles.read_client, folder)


def test_a_file_that_is_a_folder_or_not_there(folder: Path) -> None:
    (folder / "clients").unlink()
    refused("No such file", keyfiles.read_clients, folder)
    (folder / "clients").mkdir()
    refused("Is a directory", keyfiles.read_clients, folder)


@pytest.mark.parametrize("name", ["server.key", "server.pub", "clients"])
def test_a_pipe_is_refused_and_not_waited_for(folder: Path, name: str) -> None:
    (folder / name).unlink()
    os.mkfifo(folder / name, 0o600)
    read = {"server.key": lambda: keyfiles.read_pair(folder, "server")}
    read |= {"server.pub": lambda: keyfiles.read_public(folder)}
    found: list[BaseException] = []

    def reads() -> None:
        try:
            read.get(name, lambda: keyfiles.read_clients(folder))()
        except BadKeys as error:
            found.append(error)

    reading = threading.Thread(target=reads, daemon=True)
    reading.start()
    reading.join(10.0)
    assert not reading.is_alive()
    assert "must be a file" in str(found[0])


def test_a_further_client(folder: Path, tmp_path: Path) -> None:
    keyfiles.make_client(folder, "router", tmp_path / "router", data=False)
    keyfiles.make_client(folder, "vllm-1", tmp_path / "vllm", data=True)
    known = keyfiles.read_clients(folder)
    for name, where in (("router", "router"), ("vllm-1", "vllm")):
        keys = keyfiles.read_client(tmp_path / where)
        assert known[keys.public] == name
    assert not (tmp_path / "router" / "data.key").exists()
    assert keyfiles.read_pair(tmp_path / "vllm", "data") == keyfiles.read_pair(folder, "data")
    refused("has a client of that name", keyfiles.make_client, folder, "router", tmp_path, False)
    refused("name = 'a b'", keyfiles.make_client, folder, "a b", tmp_path / "c", False)


def test_a_derived_pair() -> None:
    one, other = keyfiles.new_pair(), keyfiles.new_pair()
    web = keyfiles.derived(one, "web")
    assert web == keyfiles.derived(one, "web") and zmq.curve_public(web.secret) == web.public
    assert len({web, keyfiles.derived(one, "cli"), keyfiles.derived(other, "web"), one}) == 4


def test_lines_of_clients(folder: Path) -> None:
    key = keyfiles.new_pair().public.decode()
    (folder / "clients").write_text(f"# ours\n\na {key}\n")
    assert keyfiles.read_clients(folder) == {key.encode(): "a"}
    (folder / "clients").write_text(f"a {key}\nb\n")
    refused("line 2: allowed is NAME KEY", keyfiles.read_clients, folder)


# ------------------------------------------------------------------ tokens


def test_a_token_is_printed_once_and_hashed_at_rest(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    first = tokens.add(path, "ops", "operate")
    second = tokens.add(path, "grafana", "read")
    assert first.startswith("lmkv_") and first != second and len(first) > 45
    assert mode(path) == 0o600
    assert first not in path.read_text() and second not in path.read_text()
    known = tokens.read(path)
    assert known[tokens.digest(first)] == ("ops", "operate")
    assert known[tokens.digest(second)] == ("grafana", "read")
    refused("has a token of that name", tokens.add, path, "ops", "read")
    refused("scope = 'root'", tokens.add, path, "new", "root")
    refused("name = ''", tokens.add, path, "", "read")


def test_a_last_line_that_an_editor_has_left_without_its_end(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    first = tokens.add(path, "ops", "operate")
    for file in (path, folder / "clients"):
        file.write_text(file.read_text().rstrip("\n"))
    second = tokens.add(path, "grafana", "read")
    assert tokens.read(path).keys() == {tokens.digest(first), tokens.digest(second)}
    keyfiles.make_client(folder, "router", tmp_path / "router", data=False)
    assert sorted(keyfiles.read_clients(folder).values()) == ["client", "router"]


@pytest.mark.parametrize("line", ["a read", f"a root {'0' * 64}", f"a read {'g' * 64}", "x" * 500])
def test_a_line_that_is_no_token(tmp_path: Path, line: str) -> None:
    path = tmp_path / "tokens"
    tokens.add(path, "ops", "operate")
    keyfiles.append_private(path, line)
    refused("line 2: allowed is NAME SCOPE HASH", tokens.read, path)


def test_a_tokens_file_that_others_can_read(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    tokens.add(path, "ops", "operate")
    path.chmod(0o644)
    refused("mode is 0644", tokens.read, path)
    refused("mode is 0644", tokens.add, path, "more", "read")
