"""`make gpu-check` from its first line to its last, on the fake driver as the machine's own: all
that it runs on a card is run here, by a torch and a CuPy that say they have a GPU, and without what
such a machine may lack (played/)."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fakecuda import build
from tools import gpu_check

PLAYED = Path(__file__).with_name("played")
CHECK = """
import functools, sys
from pathlib import Path
from tools import gpu_check
folder = Path(sys.argv[1])
gpu_check.BUILD, gpu_check.REPORT = folder, folder / "gpu-report.json"
gpu_check.LOOK_S = gpu_check.PART_S = gpu_check.RATES_S = 300  # a busy machine is no fault
gpu_check.TESTS_S = 6 * gpu_check.PART_S
gpu_check.build = lambda: True  # what is installed is checked
gpu_check.demo = lambda: None
gpu_check.rates = functools.partial(gpu_check.rates, "--small")
gpu_check.certified.record = lambda *what: print("recorded:", *what)
sys.exit(gpu_check.main())
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(build.COMPILER is None, reason="no C++ compiler for the fake driver")
@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is missing")
def test_all_of_it_on_a_card_that_is_played(tmp_path: Path) -> None:
    paths = [str(PLAYED), os.environ.get("PYTHONPATH", "")]
    played = {
        "LD_LIBRARY_PATH": str(build.system_folder()),
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
    }
    ran = subprocess.run(
        [sys.executable, "-c", CHECK, str(tmp_path)],
        cwd=gpu_check.ROOT,
        env=os.environ | played,
        capture_output=True,
        text=True,
        timeout=800,
    )
    said = ran.stdout + ran.stderr
    assert ran.returncode == 0, said
    for part in gpu_check.PARTS:
        assert f"\n{part}: passed\n" in ran.stdout, said
    assert re.search(r"^recorded: .+ \d{4}-\d\d-\d\d$", ran.stdout, re.MULTILINE), said
    assert "of a device copy (target 0.9: " in ran.stdout
    report = json.loads((tmp_path / "gpu-report.json").read_text())
    assert report["wrong"] is None and report["rates"]
