"""`make demo`: on a GPU with the vLLM of this Python, where both are there; else on CPUs.

For a GPU `.venvs/gpu` has what this Python has (its torch and vLLM are not touched), and what it
lacks for lmkv and the demo; for CPUs there is `.venv`, as `make setup` makes it. Its words are the
demo's. Only Python's own library is used here.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

import gpu_here  # tools/gpu_here.py
import setup  # tools/setup.py
from setup import Step, pip

GPU_VENV = setup.ROOT / ".venvs" / "gpu"
VLLM = "0.32"


def not_on_gpu() -> str | None:
    """Why; None: there are a GPU, a torch that uses it, and vLLM."""
    if sentence := gpu_here.why_not():
        return sentence
    if find_spec("vllm") is None:
        return f"vllm is missing in {sys.executable}"
    try:
        found = version("vllm")
    except PackageNotFoundError:  # built for something else, by another name
        found = "of another name"
    if not found.startswith(f"{VLLM}."):
        return f"vllm {found} of {sys.executable} is not {VLLM}"
    return None


def outer_packages() -> list[str]:
    """Folders of this Python's packages."""
    return list(dict.fromkeys(sysconfig.get_paths()[name] for name in ("purelib", "platlib")))


def make_gpu_venv() -> None:
    """A virtual environment of a virtual environment would not see that one's packages."""
    setup.make_venv(GPU_VENV)
    (site,) = GPU_VENV.glob("lib/python*/site-packages")
    (site / "outer.pth").write_text("\n".join(outer_packages()) + "\n")


def steps() -> list[Step]:
    import torch

    cuda = int((torch.version.cuda or "13").partition(".")[0])
    nixl, cupy = setup.nixl_of(cuda), ["install", f"cupy-cuda{cuda}x>=13"]
    lmkv = ["install", ".[web]"]

    def step(name: str, what: str, words: list[str]) -> Step:
        inputs = [*words, setup.source_digest() if name == "lmkv" else ""]
        return Step(name, what, GPU_VENV, inputs, lambda: pip(*words, venv=GPU_VENV))

    outer = [setup.python_version(), *outer_packages()]
    return [
        Step("venv", f".venvs/gpu, over {sys.prefix}", GPU_VENV, outer, make_gpu_venv),
        step("nixl", "NIXL's library", nixl),
        step("cupy", "CuPy, where there is no nvcc", cupy),
        step("model", "a small model for the demo", setup.MODEL),
        setup.router_step(),
        step("lmkv", "lmkv itself", lmkv),
    ]


def main(words: list[str]) -> None:
    why = not_on_gpu()
    print(f"the demo is on CPUs: {why}" if why else f"the demo is on a GPU, by {sys.executable}")
    venv = setup.VENV if why else GPU_VENV
    if (status := setup.carry_out(setup.steps if why else steps)) != 0:
        sys.exit(status)
    sys.stdout.flush()
    python = str(venv / "bin" / "python")
    os.chdir(setup.ROOT)
    os.execv(python, [python, "-m", "demo", *words])


if __name__ == "__main__":
    main(sys.argv[1:])
