"""Whether the kernels, as they are, ever ran on a GPU is said plainly, and never by a CPU."""

from pathlib import Path

from tools import certified
from tools.certified import Certificate


def test_the_three_lines() -> None:
    never = Certificate(None, None, None)
    once = Certificate("NVIDIA H100", "2027-01-31", "aaaa")
    assert "never run on a real GPU" in certified.told(never, "aaaa")
    assert certified.told(once, "aaaa") == "GPU kernels (aaaa): passed on NVIDIA H100 on 2027-01-31"
    changed = certified.told(once, "bbbb")
    assert "CHANGED since their last run on a real GPU (aaaa, NVIDIA H100 on 2027-01-31)" in changed


def test_a_changed_name_or_byte_changes_the_digest(tmp_path: Path) -> None:
    (tmp_path / "a.h").write_text("int a;")
    (tmp_path / "b.cu").write_text("int b;")
    seen = [certified.digest(tmp_path)]
    (tmp_path / "b.cu").write_text("int B;")
    seen.append(certified.digest(tmp_path))
    (tmp_path / "b.cu").rename(tmp_path / "c.cu")
    seen.append(certified.digest(tmp_path))
    (tmp_path / "CMakeLists.txt").write_text("what a GPU never sees")
    assert certified.digest(tmp_path) == seen[-1]
    assert len(set(seen)) == 3


def test_a_record_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "certified.json"
    certified.record("NVIDIA H100", "2027-01-31", path)
    told = certified.told(certified.load(path), certified.digest())
    assert told.endswith("passed on NVIDIA H100 on 2027-01-31")


def test_the_file_names_a_card_a_date_and_a_digest_or_none() -> None:
    fields = certified.load()
    parts = {fields.card is None, fields.date is None, fields.kernels is None}
    assert len(parts) == 1
