"""`python -m demo`: exit 0 when all answers are the reference's and the chunks were pulled."""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from demo.manuals import Manual, manuals
from demo.model import MODEL, make_model
from demo.processes import Processes
from demo.report import PULLED_SHARE, make_report, show
from demo.scenes import Measured, with_lmkv, without_lmkv
from demo.servers import ROOT, start_cluster

WORK = ROOT / ".demo"
REPORT = ROOT / "demo-report.json"
TOKENS = 4110
PER_ROW = 3

_begin = time.monotonic()
_lock = threading.Lock()


def say(words: str) -> None:
    """A line of progress on stderr, with the seconds since the start."""
    with _lock:
        print(f"{time.monotonic() - _begin:5.0f} s  {words}", file=sys.stderr, flush=True)


def _manuals(per_row: int) -> list[Manual]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    return manuals(1 + 3 * per_row, TOKENS, lambda text: len(tokenizer.encode(text).ids))


def run(arguments: argparse.Namespace, run_dir: Path) -> int:
    say("the model")
    make_model(MODEL, WORK / "model.log")
    texts = _manuals(arguments.per_row)
    with Processes(WORK) as processes:
        say("two vLLM servers and a router, without lmkv")
        cluster = start_cluster(processes, MODEL, run_dir, lmkv=False)
        problem, expected = without_lmkv(cluster, texts, say)
        measured = Measured(problem)
        if arguments.no_lmkv:
            show(measured, {})
            return 0
        processes.stop(cluster.processes)
        say("a controller, two vLLM servers and a router, with lmkv")
        cluster = start_cluster(processes, MODEL, run_dir, lmkv=True)
        with_lmkv(cluster, texts, expected, measured, say)
        report = make_report(measured, round(time.monotonic() - _begin, 1))
        REPORT.write_text(json.dumps(report, indent=2) + "\n")
        show(measured, report)
        if arguments.keep:
            print(f"controller  {cluster.controller}")
            print(f"dashboard   {cluster.dashboard}")
            for name, client in (("router", cluster.router), ("A", cluster.a), ("B", cluster.b)):
                print(f"{name:11} http://127.0.0.1:{client.port}/v1")
            print("ctrl-C ends them all", flush=True)
            signal.pause()
        pulled = report["pulled_tokens"] >= PULLED_SHARE * report["whole_chunk_tokens"]
        return 0 if report["outputs_equal"] and pulled else 1


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="demo", description="Two vLLM servers share a prompt.")
    parser.add_argument("--keep", action="store_true", help="leave all running until ctrl-C")
    parser.add_argument("--no-lmkv", action="store_true", help="show only the problem")
    parser.add_argument("--per-row", type=int, default=PER_ROW, help="manuals a row (%(default)s)")
    arguments = parser.parse_args(argv)
    WORK.mkdir(exist_ok=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    run_dir = Path(tempfile.mkdtemp(prefix="lmkv-demo-"))  # short: unix sockets live in it
    try:
        return run(arguments, run_dir)
    except KeyboardInterrupt:
        say("stopped")
        return 0 if arguments.keep else 130
    except (RuntimeError, OSError) as failure:
        print(failure, file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(run_dir, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
