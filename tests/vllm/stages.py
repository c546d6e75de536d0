"""A worker that vLLM's CPU backend needs for pipeline stages (`worker_cls`).

Without compilation it skips the warm-up, by which a stage gets its room for what the one before it
hands over; the first forward then fails.
"""

from __future__ import annotations

from vllm.v1.worker.cpu_worker import CPUWorker


class StageWorker(CPUWorker):
    def _should_warm_up_model(self) -> bool:
        return True

    def init_device(self) -> None:
        super().init_device()
        self.model_runner.warming_up_model = self.model_runner.profile_run  # type: ignore[method-assign]
