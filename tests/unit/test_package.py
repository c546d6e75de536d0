"""The package: built as sdist and wheel, installed where there is no compiler, and light."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(*words: str | Path, **options: object) -> str:
    ran = subprocess.run(list(map(str, words)), capture_output=True, text=True, **options)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist and the wheel that was built from the unpacked sdist."""
    out = tmp_path_factory.mktemp("dist")
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    }
    run(
        sys.executable, "-m", "build", "--no-isolation", "--outdir", out, ROOT,
        env=environment, cwd=out,
    )  # fmt: skip
    return out


def test_the_sdist_holds_what_a_build_needs_and_no_tests(built: Path) -> None:
    import tarfile

    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    assert {"CMakeLists.txt", "LICENSE", "README.md", "csrc/check.h"} <= names
    assert not [n for n in names if n.startswith(("tests/", "bench/", "demo/")) or ".so" in n]


def test_the_wheel_has_the_kernels_sources_and_what_nvcc_made_of_them(built: Path) -> None:
    import zipfile

    from tools import nvcc

    (wheel,) = built.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    sources = {f"lmkv/kernels/{p.name}" for p in nvcc.KERNELS.glob("*.[hc]*")}
    assert {"lmkv/kernels/lmkv.cu", "lmkv/kernels/team.h"} <= sources <= names
    if nvcc.program("nvcc") is None:
        assert "lmkv/kernels/lmkv.fatbin" not in names
    else:
        assert "lmkv/kernels/lmkv.fatbin" in names


def test_the_wheel_works_in_an_empty_venv_without_a_compiler(built: Path, tmp_path: Path) -> None:
    (wheel,) = built.glob("*.whl")
    assert "none-any" not in wheel.name
    run(sys.executable, "-m", "venv", tmp_path / "venv")
    scripts = tmp_path / "venv" / "bin"
    bare = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    bare["PATH"] = str(scripts)  # no cc, no cmake, nothing
    run(scripts / "python", "-m", "pip", "install", "--quiet", wheel, env=bare, cwd=tmp_path)
    assert "0.1.0" in run(scripts / "lmkv", "version", env=bare, cwd=tmp_path)
    have = run(scripts / "python", "-m", "pip", "list", env=bare, cwd=tmp_path).lower()
    assert not [name for name in ("torch", "vllm", "nixl", "cupy", "numpy") if name in have]
    run(scripts / "python", "-c", "import lmkv._native", env=bare, cwd=tmp_path)
    controller = [scripts / "lmkv", "controller", "--port", "0"]
    with subprocess.Popen(controller, stderr=subprocess.PIPE, text=True, env=bare) as running:
        assert running.stderr
        assert "listening at" in running.stderr.readline()
        assert "pip install 'lmkv[web]'" in running.stderr.readline()
        running.terminate()
    assert running.returncode == 0


def test_import_lmkv_costs_nothing() -> None:
    """What every vLLM imports, that shares or not: no other module comes with it."""
    adds = "import sys; had = {*sys.modules}; import lmkv; print(*({*sys.modules} - had))"
    assert run(sys.executable, "-c", adds).split() == ["lmkv"]


def test_the_plugin_registers_once_and_may_be_called_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for vLLM's factory, which raises on a second registration of a name."""
    import types

    class KVConnectorFactory:
        _registry: ClassVar[dict[str, object]] = {}

        @classmethod
        def register_connector(cls, name: str, module: str, class_name: str) -> None:
            assert name not in cls._registry
            cls._registry[name] = (module, class_name)

    factory = types.ModuleType("factory")
    factory.KVConnectorFactory = KVConnectorFactory
    module = "vllm.distributed.kv_transfer.kv_connector.factory"
    for i, _ in enumerate(parts := module.split(".")):
        monkeypatch.setitem(sys.modules, ".".join(parts[: i + 1]), factory)

    class WorkerWrapperBase:
        def init_worker(self, worker: object) -> None:
            self.worker = worker
            self.vllm_config = types.SimpleNamespace(kv_transfer_config=None)

    workers = types.ModuleType("workers")
    workers.WorkerWrapperBase = WorkerWrapperBase
    for name in ("v1", "v1.worker", "v1.worker.worker_base"):
        monkeypatch.setitem(sys.modules, f"vllm.{name}", workers)

    from lmkv.plugin import register

    register()
    once = WorkerWrapperBase.init_worker
    register()
    assert KVConnectorFactory._registry == {"LmkvConnector": ("lmkv.connector", "LmkvConnector")}
    assert WorkerWrapperBase.init_worker is once
    wrapper, worker = WorkerWrapperBase(), object()
    wrapper.init_worker(worker)
    assert wrapper.worker is worker


def test_settings_are_found_beside_other_connectors() -> None:
    from lmkv.plugin import settings_of

    mine = {"kv_connector": "LmkvConnector", "kv_connector_extra_config": {"min_tokens": 1}}
    other = {"kv_connector": "ExampleConnector", "kv_connector_extra_config": None}
    assert settings_of(mine) == {"min_tokens": 1}
    assert settings_of({"kv_connector": "LmkvConnector"}) == {}
    assert settings_of(other) is None and settings_of({}) is None
    both = {"kv_connector": "MultiConnector", "kv_connector_extra_config": {"connectors": [other]}}
    assert settings_of(both) is None
    both["kv_connector_extra_config"] = {"connectors": [other, mine]}
    assert settings_of(both) == {"min_tokens": 1}


def test_vllm_finds_the_plugin_by_its_entry_point() -> None:
    from importlib.metadata import entry_points

    (entry,) = [e for e in entry_points(group="vllm.general_plugins") if e.name == "lmkv"]
    from lmkv import plugin

    assert entry.load() is plugin.register
