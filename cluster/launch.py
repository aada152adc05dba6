"""Starting vLLM's asynchronous engine with our settings, on CPUs or GPUs.

Knows nothing of requests, or of whose weights are loaded.
"""

import contextlib
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil

from cluster.requests import EngineConfig
from cluster.tiles import UseTiles
from cluster.watch import WatchParent


class WorkerExtension:
    """vLLM mixes this into its workers, so that it can be called there by name."""

    def load_folder(self: Any, folder: str) -> None:
        """Put the weights of a whole model in the place of the present ones.

        On CPU vLLM keeps a second, packed copy of each matrix, and its reload forgets that of an
        output layer tied to the embeddings: the model would speak through its old one.
        """
        from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

        self.reload_weights(weights_path=folder)
        for module in self.model_runner.get_model().modules():
            if isinstance(module, ParallelLMHead):
                module.quant_method.process_weights_after_loading(module)


def start(config: EngineConfig) -> Any:
    """Return a running AsyncLLM. Raises RuntimeError or ValueError as vLLM does."""
    import torch
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    on_cpu = not torch.cuda.is_available()
    arguments: dict[str, Any] = {
        "model": config.model_dir,
        "dtype": config.dtype,
        "max_model_len": config.max_model_len,
        "max_num_seqs": config.max_num_seqs,
        "gpu_memory_utilization": config.gpu_memory_utilization,
        "kv_cache_memory_bytes": math.ceil(config.kv_cache_gib * 2**30) or None,
        "enforce_eager": config.enforce_eager,
        "tensor_parallel_size": config.tensor_parallel,
        "trust_remote_code": config.trust_remote_code,
        "enable_prefix_caching": True,
        "logprobs_mode": "raw_logprobs",
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
    }
    if on_cpu:
        # A seeded prompt prefilled in two pieces ends the CPU engine ("CPU Generator does not use
        # offset"), so a prompt must fit one step; more room lets prompts be prefilled together.
        arguments["enable_chunked_prefill"] = False
        arguments["max_num_batched_tokens"] = max(config.max_model_len, 4096)
        # The smallest that the CPU's attention takes. Prefixes are shared in whole blocks only: on
        # two busy cores 48 scores were read digit by digit in 166 s with the default of 128, and
        # in 25 s with 32.
        arguments["block_size"] = 32
    if config.mode == "lora":
        lora = {"max_lora_rank": config.max_lora_rank, "max_loras": config.max_loras}
        arguments |= {"enable_lora": True, **lora}
    else:
        extension = WorkerExtension
        arguments["worker_extension_cls"] = f"{extension.__module__}.{extension.__qualname__}"
    settings = AsyncEngineArgs(**arguments).create_engine_config()
    settings.watch_parent = WatchParent()
    if on_cpu and config.dtype == "bfloat16":  # for others vLLM does not use them
        settings.use_tiles = UseTiles()
    return AsyncLLM.from_vllm_config(settings, disable_log_stats=True)


def tokens_under_way(llm: Any) -> dict[str, int]:
    """The number of tokens so far of each request that an AsyncLLM has under way.

    Read where vLLM itself collects them, as each step of the engine comes in: its own statistics
    cost every step something and bring Prometheus along.
    """
    states = llm.output_processor.request_states
    return {name: state.detokenizer.num_output_tokens() for name, state in states.items()}


def kill(llm: Any) -> None:
    """SIGKILL an AsyncLLM's processes: one that is stopped or hangs heeds nothing less."""
    manager = llm.engine_core.resources.engine_manager
    for core in manager.processes if manager else ():
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(core.pid)
            for one in [process, *process.children(recursive=True)]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.kill()


@contextmanager
def environment(config: EngineConfig) -> Iterator[None]:
    """vLLM reads these when it is imported or when its processes start; put back afterwards."""
    wanted = {
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "WARNING"),
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # a fork would not unpickle, hence not watch
        # vLLM's sampler compiles a function at the first log-probability (17 s on two cores).
        "TORCH_COMPILE_DISABLE": "1" if config.enforce_eager else "0",
        "OMP_NUM_THREADS": str(config.threads),  # Ray sets it to a task's CPUs
        "VLLM_CPU_OMP_THREADS_BIND": _binding(config),
    }
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _binding(config: EngineConfig) -> str:
    """The cores for vLLM's threads: bound ones are 1.4 times as fast, where no other wants them."""
    cores = sorted(os.sched_getaffinity(0))
    if config.tensor_parallel > 1 or config.threads < len(cores):
        return "nobind"  # two engines would bind themselves to the same cores
    return ",".join(map(str, cores))
