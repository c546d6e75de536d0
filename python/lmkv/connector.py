"""The vLLM connector: adapts vLLM 0.32's calls to the agent (scheduler) or the worker.

With `connector_*.py` all that imports vLLM. Nothing here may fail a request or the engine: a side
that cannot share says why in one line and answers like an empty cache; a call that raises switches
its side off (`_guarded`). Order of the calls: vLLM's `kv_connector/v1/base.py`. Every positive
answer is an asynchronous load.
"""

from __future__ import annotations

import atexit
import functools
import logging
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeVar

import vllm
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorHandshakeMetadata,
    KVConnectorMetadata,
    KVConnectorRole,
    KVConnectorTransferResults,
    KVConnectorWorkerMetadata,
    SupportsHMA,
)
from vllm.logger import init_logger

from lmkv.connector_deployment import (
    chunk_tokens,
    instance_of,
    ranks_on_host,
    refuse_unshared,
)
from lmkv.connector_metadata import LmkvHandshake, LmkvMetadata, LmkvWorkerMetadata
from lmkv.connector_metrics import LmkvPromMetrics, LmkvStats, copies
from lmkv.core import config as settings
from lmkv.core import geometry
from lmkv.core.keyfiles import ClientKeys, client_keys
from lmkv.core.messages import PullResult
from lmkv.core.rank_sockets import agent_keys, place
from lmkv.core.steps import LoadResult, StepPlan

if TYPE_CHECKING:
    from lmkv.agent.agent import Agent
    from lmkv.connector_events import PoolEvents
    from lmkv.connector_text import Tokeniser
    from lmkv.worker.worker import Worker

try:
    from vllm.v1.metrics.cache_hit_source import CacheHitSource
except ImportError:  # before 0.32
    CacheHitSource = None

logger = init_logger("vllm.lmkv")
logging.getLogger("lmkv").parent = logging.getLogger("vllm")  # its handlers, its level

TESTED_VLLM = "0.32."
F = TypeVar("F", bound=Callable[..., Any])


def _guarded(default: Any = None) -> Callable[[F], F]:
    """An exception is logged once, switches this side off, and becomes `default`."""

    def wrap(method: F) -> F:
        @functools.wraps(method)
        def guarded(self: LmkvConnector, *args: Any, **kwargs: Any) -> Any:
            try:
                return method(self, *args, **kwargs)
            except Exception:
                self.switch_off("an internal error, please report it", error=True)
                return default() if callable(default) else default

        return guarded  # type: ignore[return-value]

    return wrap


class LmkvConnector(KVConnectorBase_V1, SupportsHMA):
    """`--kv-transfer-config '{"kv_connector": "LmkvConnector", "kv_role": "kv_both"}'`"""

    def __init__(self, vllm_config: Any, role: KVConnectorRole, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        self._agent: Agent | None = None
        self._worker: Worker | None = None
        self._events: PoolEvents | None = None  # where vLLM's KV events are on
        self._config: settings.InstanceConfig | None = None
        self._keys: ClientKeys | None = None  # by which controllers know it
        self._rank_keys: ClientKeys | None = None  # and workers and movers
        self._off = ""  # why nothing is shared
        self._requests: dict[str, Any] = {}  # vLLM's, by id
        self._ended: dict[str, tuple[int, LoadResult]] = {}
        self._step_loads: dict[str, LoadResult] = {}
        self._drafts, self._volatile = False, 0  # speculative decoding; tokens it may come back to
        transfer = vllm_config.kv_transfer_config
        transfer.kv_load_failure_policy = "recompute"
        self._tell_outer_connector(sys._getframe(1).f_locals.get("self"))
        if role is KVConnectorRole.SCHEDULER and not vllm.__version__.startswith(TESTED_VLLM):
            logger.warning(
                "lmkv is tested with vLLM %sx, this is %s", TESTED_VLLM, vllm.__version__
            )
        try:
            self._config = settings.read(
                settings.InstanceConfig, transfer.kv_connector_extra_config
            )
            self._keys = client_keys(self._config.keys)
            self._rank_keys = agent_keys(place(self._config))
            refuse_unshared(vllm_config, kv_cache_config)
        except ValueError as error:
            self.switch_off(str(error))

    def _tell_outer_connector(self, maker: Any) -> None:
        """vLLM reads the failure policy of the outermost connector, once that is made. A
        MultiConnector hands its children configurations of their own, so its own is set here: else
        a load that fails would fail its request."""
        outer = getattr(maker, "_vllm_config", None) if hasattr(maker, "sub_connectors") else None
        if outer is not None:
            outer.kv_transfer_config.kv_load_failure_policy = "recompute"

    @property
    def requires_kv_delivery(self) -> bool:
        return False

    def switch_off(self, why: str, error: bool = False) -> None:
        """Share nothing from now on; vLLM serves on."""
        if not self._off:
            self._off = why
            if self.role is KVConnectorRole.SCHEDULER or error:
                logger.warning("lmkv shares nothing here: %s", why, exc_info=error)

    def _chunk_tokens(self) -> int:
        return chunk_tokens(
            self._kv_cache_config, self._config.chunk_tokens if self._config else None
        )

    @functools.cached_property
    def _whole_loads(self) -> bool:
        groups = self._kv_cache_config.kv_cache_groups
        return geometry.loads_whole([geometry.window(group.kv_cache_spec) for group in groups])

    # ------------------------------------------------------------ worker side

    @_guarded()
    def register_kv_caches(self, kv_caches: dict[str, Any]) -> None:
        if self._off:
            return
        from lmkv.core import identity
        from lmkv.core.pool_size import DoesNotFit
        from lmkv.worker import gpu_room
        from lmkv.worker.copiers import copiers_of
        from lmkv.worker.front import in_front
        from lmkv.worker.kv_group import Unsupported
        from lmkv.worker.page_layout import page_layouts
        from lmkv.worker.worker import Worker

        assert self._config is not None
        parallel = self._vllm_config.parallel_config
        rank = parallel.rank % parallel.world_size  # pipeline stage by stage
        try:
            pages = page_layouts(
                kv_caches, self._kv_cache_config, self._vllm_config, rank, self._chunk_tokens()
            )
            instance, engine_id = instance_of(self._vllm_config, self._config)
            run_dir = identity.run_dir(self._config.run_dir or None)
            on_gpu = self._config.pool_device == "cuda"
            room = gpu_room.take(gpu_room.ordinal_of(pages)) if on_gpu else None
            copiers = copiers_of(pages, self._config, run_dir)
            if self._config.pool_device == "cuda+host":
                copiers = in_front(copiers, pages)
            self._worker = Worker(
                self._config,
                instance,
                engine_id,
                rank,
                ranks_on_host(parallel),
                pages,
                rank // parallel.tensor_parallel_size,
                copiers,
                room,
            )
            self._worker.start()
        except (Unsupported, DoesNotFit, ValueError, OSError, RuntimeError) as error:
            self.switch_off(str(error))

    def get_handshake_metadata(self) -> KVConnectorHandshakeMetadata | None:
        if self._worker is None:
            return LmkvHandshake(error=self._off or "no KV cache was registered")
        return LmkvHandshake(rank=self._worker.handshake())

    def _plan(self) -> StepPlan:
        metadata = self._get_connector_metadata()
        assert isinstance(metadata, LmkvMetadata)
        return metadata.plan

    @_guarded()
    def handle_preemptions(self, kv_connector_metadata: KVConnectorMetadata) -> None:
        assert isinstance(kv_connector_metadata, LmkvMetadata)
        plan = kv_connector_metadata.plan
        if self._worker is not None and (plan.wait_for or plan.loads):
            self._worker.handle_preemptions(plan)

    @_guarded()
    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        if self._worker is not None and self._plan().loads:
            self._worker.submit_loads(self._plan())

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Loads are asynchronous: nothing to wait for."""

    def save_kv_layer(
        self, layer_name: str, kv_layer: Any, attn_metadata: Any, **kwargs: Any
    ) -> None:
        """Stores are whole slots, taken after the step."""

    @_guarded()
    def wait_for_save(self) -> None:
        if self._worker is not None and self._plan().stores:
            self._worker.submit_stores(self._plan())

    def get_transfer_results(self, finished_req_ids: set[str]) -> KVConnectorTransferResults:
        received = self.get_finished(finished_req_ids)[1]
        ended = self._step_loads.items() if self._whole_loads else ()
        failed = {request for request, load in ended if load.result != PullResult.GOOD}
        return KVConnectorTransferResults(finished_recving=received, failed_recving=failed)

    def get_finished(self, finished_req_ids: set[str]) -> tuple[set[str], set[str]]:
        self._step_loads = {} if self._worker is None else self._worker.take_finished()
        return set(), set(self._step_loads)

    def get_block_ids_with_load_errors(self) -> set[int]:
        failed = set() if self._worker is None else self._worker.take_failed_blocks()
        return set() if self._whole_loads else failed

    def build_connector_worker_meta(self) -> KVConnectorWorkerMetadata | None:
        if not self._step_loads:
            return None
        return LmkvWorkerMetadata({r: (1, result) for r, result in self._step_loads.items()})

    # ------------------------------------------------------------ scheduler side

    def set_xfer_handshake_metadata_pp_aware(
        self, metadata: dict[tuple[int, int], KVConnectorHandshakeMetadata]
    ) -> None:
        shakes = [s for _, s in sorted(metadata.items()) if isinstance(s, LmkvHandshake)]
        errors = [s.error for s in shakes if s.error]
        if errors:
            self.switch_off(errors[0])
        elif len(shakes) < max(1, len(metadata)):
            self.switch_off(
                "opted_out: another connector's handshake took the place of lmkv's; name "
                "LmkvConnector first among MultiConnector's connectors"
            )
        if not self._off:
            self._begin([s.rank for s in shakes])

    @_guarded()
    def _begin(self, ranks: list[dict[str, Any]]) -> None:
        from lmkv.agent.namespace import Unshareable, content_ids
        from lmkv.agent.texts import Texts
        from lmkv.connector_agent import agent_of, engine_here
        from lmkv.core.extras import AdapterHashes

        vllm_config, cache, config = self._vllm_config, self._kv_cache_config, self._config
        assert config is not None
        self._adapters, self._content_ids = AdapterHashes(), content_ids(vllm_config)
        chunk = self._chunk_tokens()
        block = max(group.kv_cache_spec.block_size for group in cache.kv_cache_groups)
        self._expect_drafts(vllm_config.speculative_config, block)
        try:
            engine = engine_here(vllm_config, cache, config, chunk, ranks)
        except Unshareable as error:
            self.switch_off(f"opted_out: {error}")
            return
        self._events = self._pool_events(chunk)
        describe = self._events.describe if self._events is not None else None
        texts = Texts(self._tokenise, self._adapters.named)
        keys = self._keys, self._rank_keys
        self._agent = agent_of(vllm_config, config, engine, *keys, describe, texts)
        self._agent.start()
        atexit.register(self._agent.close)
        logger.info("lmkv: instance %s shares chunks of %d tokens", engine.instance, chunk)

    def _tokenise(self, text: str, messages: Sequence[dict[str, str]]) -> list[int]:
        """For lookups, in a thread of theirs."""
        return self._tokeniser(text, messages)

    @functools.cached_property
    def _tokeniser(self) -> Tokeniser:
        from lmkv.connector_text import Tokeniser

        return Tokeniser(self._vllm_config)

    def _pool_events(self, chunk_tokens: int) -> PoolEvents | None:
        config = getattr(self._vllm_config, "kv_events_config", None)
        if config is None or not config.enable_kv_cache_events:
            return None
        try:
            from lmkv.connector_events import PoolEvents

            return PoolEvents(self._kv_cache_config, chunk_tokens, self._requests)
        except Exception:  # sharing does not depend on it
            logger.warning("lmkv: routers hear nothing of the pool", exc_info=True)
            return None

    def _expect_drafts(self, speculative: Any, block_tokens: int) -> None:
        """Draft heads (EAGLE, MTP) may go back to the last block of a request that decodes."""
        self._drafts = speculative is not None
        self._volatile = block_tokens if self._drafts and speculative.use_eagle() else 0

    @_guarded()
    def on_new_request(self, request: Any) -> None:
        if self._agent is None:
            return
        from lmkv.agent.options import Options

        self._requests[request.request_id] = request
        common, chunks, why = self._extras(request)
        self._agent.begin(
            request.request_id,
            request._all_token_ids,
            common,
            chunks,
            Options.of(request.kv_transfer_params),
            why,
            getattr(request, "trace_headers", None),
        )

    def _extras(self, request: Any, why: str = "") -> tuple[bytes, Mapping[int, bytes], str]:
        """What beside its tokens is in a request's keys, or why it is opted out."""
        from lmkv.core.extras import OptedOut, request_extras

        extras = request_extras(
            request, self._chunk_tokens(), self._adapters, content_ids=self._content_ids
        )
        if isinstance(extras, OptedOut):
            return b"", {}, extras.reason
        return extras.common, extras.chunks, why

    @_guarded(lambda: (0, False))
    def get_num_new_matched_tokens(
        self, request: Any, num_computed_tokens: int
    ) -> tuple[int | None, bool]:
        if self._agent is None or self._off or request.skip_reading_prefix_cache:
            return 0, False
        tokens = self._agent.match(request.request_id, num_computed_tokens, request.num_tokens)
        return tokens, bool(tokens)

    @_guarded()
    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        if self._agent is not None:
            tables = blocks.get_block_ids() if num_external_tokens else ()
            self._agent.allocated(request.request_id, tables, num_external_tokens)

    @_guarded(dict)
    def get_external_cache_hit_sources(
        self, request: Any, num_external_tokens: int
    ) -> dict[Any, int]:
        """Of the load just allocated: `host` is the own pool, `p2p` peers', mapped or pulled."""
        hits = self._agent.hit_tokens(request.request_id) if self._agent is not None else {}
        own = hits.get("hit_pool", 0)
        split = {CacheHitSource.HOST: own, CacheHitSource.P2P: num_external_tokens - own}
        return {source: tokens for source, tokens in split.items() if tokens}

    def build_connector_meta(self, scheduler_output: Any) -> KVConnectorMetadata:
        return LmkvMetadata(self._step_plan(scheduler_output))

    @_guarded(StepPlan)
    def _step_plan(self, scheduler_output: Any) -> StepPlan:
        agent = self._agent
        if agent is None:
            return StepPlan()
        new_blocks: list[int] = []
        for new in scheduler_output.scheduled_new_reqs:
            new_blocks += chain.from_iterable(new.block_ids)
        for ids in scheduler_output.scheduled_cached_reqs.new_block_ids:
            if ids is not None:
                new_blocks += chain.from_iterable(ids)
        stores = [] if self._off else self._stores(agent, scheduler_output)
        plan = agent.step(stores, new_blocks)
        self._measure(agent, scheduler_output)  # last: its failure must not cost the plan
        return plan

    @_guarded()
    def _measure(self, agent: Agent, scheduler_output: Any) -> None:
        agent.rates.prefill.scheduled(scheduler_output.num_scheduled_tokens, self._requests)

    @_guarded(list)  # loads and waits of the step go out all the same
    def _stores(
        self, agent: Agent, scheduler_output: Any
    ) -> Iterable[tuple[str, int, int, Sequence[Sequence[int]]]]:
        """As `Agent.step` takes them."""
        from lmkv.agent.stores import confirmed

        found = []
        for request_id, scheduled in scheduler_output.num_scheduled_tokens.items():
            request = self._requests.get(request_id)
            if request is None:
                continue
            known, prompt = request.num_tokens, request.num_prompt_tokens
            if agent.has_grown(request_id, prompt):
                why = "drafts may be left in its blocks" if self._drafts else ""
                agent.continued(request_id, request._all_token_ids, *self._extras(request, why))
            tokens = confirmed(
                request.num_computed_tokens, scheduled, known, prompt, self._volatile
            )
            first, last = agent.plan(request_id, request._all_token_ids, tokens)
            if last > first:
                blocks = scheduler_output.kv_connector_block_state.get_block_ids(request_id)
                found.append((request_id, first, last, blocks))
        return found

    @_guarded()
    def update_connector_output(self, connector_output: Any) -> None:
        metadata = connector_output.kv_connector_worker_meta
        if self._agent is None:
            return
        self._agent.rates.prefill.output()
        if not isinstance(metadata, LmkvWorkerMetadata):
            return
        ranks = self._vllm_config.parallel_config.world_size
        ended = LmkvWorkerMetadata(self._ended).aggregate(metadata)
        assert isinstance(ended, LmkvWorkerMetadata)
        self._ended = ended.loads
        for request, (count, result) in list(self._ended.items()):
            if count >= ranks:
                del self._ended[request]
                self._agent.loaded(request, result)

    def request_finished(
        self, request: Any, block_ids: list[int]
    ) -> tuple[bool, dict[str, Any] | None]:
        return self.request_finished_all_groups(request, (block_ids,))

    @_guarded(lambda: (False, None))
    def request_finished_all_groups(
        self, request: Any, block_ids: tuple[list[int], ...]
    ) -> tuple[bool, dict[str, Any] | None]:
        if self._agent is None:
            return False, None
        self._requests.pop(request.request_id, None)
        return False, self._agent.finished(request.request_id)

    @_guarded()
    def get_kv_connector_stats(self) -> LmkvStats | None:
        if self._worker is not None:
            return copies(self._worker.take_stats())
        taken = self._agent.take_stats() if self._agent is not None else {}
        return LmkvStats(taken) if taken else None

    @_guarded(list)
    def take_events(self) -> Iterable[Any]:
        """What vLLM publishes of the pool, beside the events of its own blocks."""
        if self._events is None or self._agent is None or self._agent.events is None:
            return ()
        if self._off:
            self._agent.events.end()
        return list(self._events.events(*self._agent.events.take()))

    @_guarded(False)
    def has_pending_push_work(self) -> bool:
        """Events leave with steps: an engine that has just become idle makes those that its last
        stores need, as vLLM's own offloading does."""
        return not self._off and self._agent is not None and self._agent.must_step()

    @_guarded(True)
    def reset_cache(self) -> bool | None:
        if self._agent is not None:
            self._agent.reset()
        return True

    # ------------------------------------------------------------ both

    def shutdown(self) -> None:
        if self._agent is not None:
            self._agent.close()
        if self._worker is not None:
            self._worker.stop()

    @classmethod
    def build_kv_connector_stats(cls, data: dict[str, Any] | None = None) -> LmkvStats:
        return LmkvStats(data or {})

    @classmethod
    def build_prom_metrics(
        cls, vllm_config: Any, metric_types: Any, labelnames: Any, per_engine_labelvalues: Any
    ) -> LmkvPromMetrics:
        return LmkvPromMetrics(vllm_config, metric_types, labelnames, per_engine_labelvalues)
