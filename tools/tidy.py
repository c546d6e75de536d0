"""clang-tidy over csrc, a part of `make lint`: every file that has changed since it was last clean.

What a file's warnings depend on is the file, any header, the checks and the version: where a file
passed with the same of these, it is not read again. All files take about a minute of two cores.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
BUILD = ROOT / "build/tidy"
PASSED = BUILD / "passed.json"
CONFIG = [".clang-tidy", "CMakeLists.txt"]


def digest(*paths: Path, before: str = "") -> str:
    found = hashlib.sha256(before.encode())
    for path in paths:
        found.update(path.read_bytes())
    return found.hexdigest()


def configure() -> None:
    """compile_commands.json; nothing is built."""
    words = ["cmake", "-S", ROOT, "-B", BUILD, "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON"]
    words += ["-DCMAKE_BUILD_TYPE=Release", f"-DPython_EXECUTABLE={sys.executable}"]
    path = f"{BIN}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    done = subprocess.run(
        words, env=os.environ | {"PATH": path}, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        sys.exit(f"{done.stdout}{done.stderr}")


def tidy(path: Path) -> str:
    """What clang-tidy says of a file, "" when it has nothing to say."""
    words = [BIN / "clang-tidy", "-p", BUILD, "--quiet", path]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else done.stdout or done.stderr


def main() -> int:
    version = subprocess.run(
        [BIN / "clang-tidy", "--version"], capture_output=True, text=True, check=True
    ).stdout
    headers = sorted(p for folder in ("csrc", "kernels") for p in (ROOT / folder).rglob("*.h"))
    common = digest(*(ROOT / name for name in CONFIG), *headers, before=version)
    passed = json.loads(PASSED.read_text()) if PASSED.exists() else {}
    now = {path: digest(path, before=common) for path in sorted((ROOT / "csrc").rglob("*.cpp"))}
    due = [path for path, mark in now.items() if passed.get(str(path)) != mark]
    if not due:
        return 0
    configure()
    wrong = 0
    with ThreadPoolExecutor(os.cpu_count() or 1) as threads:
        for path, said in zip(due, threads.map(tidy, due)):
            if said:
                wrong += 1
                print(said)
            else:
                passed[str(path)] = now[path]
    PASSED.write_text(json.dumps({str(path): passed.get(str(path), "") for path in now}))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
