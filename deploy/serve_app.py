"""The aligned model of a run behind an OpenAI-compatible address of this machine.

Ray Serve in a cluster of its own, so that stopping it touches nobody else's applications. Only
processes of this machine can reach it: there is no authentication to guard anything wider.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import signal
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

from actors.rollout import engine_environment, prefill_settings
from equilibrate.config.base import RunConfig
from equilibrate.config.files import load_run_config
from equilibrate.errors import DataError, ResourceError

if TYPE_CHECKING:
    from ray.serve import Application

HOST = "127.0.0.1"
MAX_RUNNING_REQUESTS = 32
MAX_WAITING_REQUESTS = 64
"""Beyond running and waiting requests the server answers 503 at once."""
REQUEST_TIMEOUT_SECONDS = 600.0


def serve(run: Path, port: int) -> int:
    """Serve RUN/aligned until Ctrl-C or SIGTERM, then stop everything that was started.

    Returns: 0 after either signal.
    Raises:
        DataError: `run` holds no finished run.
        ResourceError: the port is taken, or the engine does not start.
    """
    run = run.resolve()
    config, model = read_run(run)
    require_free(port)
    try:
        _start(config, model, model_id=run.name, port=port)
        print(ready_message(run.name, port), flush=True)
        while True:
            signal.pause()
    except KeyboardInterrupt:
        return 0
    finally:
        _stop()


def read_run(run: Path) -> tuple[RunConfig, Path]:
    """Settings of a run and the folder of its aligned model.

    Raises: DataError if either is missing.
    """
    config = load_run_config(run)
    model = run / "aligned"
    if not (model / "config.json").is_file():
        raise DataError(
            f"{model}: there is no aligned model; finish the run first with "
            f"`python -m equilibrate train --config {run / 'config.yaml'}`"
        )
    return config, model


def require_free(port: int) -> None:
    """Raises: ResourceError if the port cannot be listened on."""
    with socket.socket() as probe:
        # Without it, connections that a former server left in TIME_WAIT look like a taken port.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except (OSError, OverflowError) as error:
            raise ResourceError(
                f"port ({port}) must be free to listen on: {error}; try --port {port % 60000 + 1}"
            ) from error


def ready_message(model_id: str, port: int) -> str:
    """The address and one request that can be pasted into a shell."""
    base_url = f"http://{HOST}:{port}/v1"
    body = json.dumps({"model": model_id, "messages": [{"role": "user", "content": "Hello"}]})
    return (
        f"Serving {model_id} at {base_url} (stop with Ctrl-C). Try:\n"
        f"curl {base_url}/chat/completions -H 'Content-Type: application/json' "
        f"-d {shlex.quote(body)}"
    )


def engine_settings(config: RunConfig) -> dict[str, Any]:
    """Arguments of vLLM: the numbers and lengths that the model was aligned with."""
    is_cpu = config.device == "cpu"
    settings: dict[str, Any] = {
        "dtype": config.dtype,
        "max_model_len": config.rollout.max_model_len,
        "max_num_seqs": MAX_RUNNING_REQUESTS,
        "enforce_eager": is_cpu,
        **prefill_settings(is_cpu=is_cpu),
    }
    if is_cpu:
        settings["kv_cache_memory_bytes"] = int(config.rollout.memory_gib * 2**30)
    return settings


def build_app(config: RunConfig, model: Path, model_id: str) -> Application:
    """Engine and OpenAI routes; Ray must be connected, or building would start a cluster.

    Raises: ResourceError if `ray.serve.llm` does not fit the installed vLLM.
    """
    try:
        from fastapi import FastAPI
        from ray import serve as ray_serve
        from ray.llm._internal.serve.core.configs.openai_api_models import to_model_metadata
        from ray.llm._internal.serve.core.ingress.middleware import (
            SetRequestIdMiddleware,
            add_exception_handling_middleware,
        )
        from ray.serve.llm import LLMConfig, build_llm_deployment
        from ray.serve.llm.ingress import OpenAiIngress, make_fastapi_ingress

        from deploy.request_limits import RequestLimits
    except ImportError as error:
        raise ResourceError(
            f"ray.serve.llm of ray {ray.__version__} does not import ({error}): it needs the vLLM "
            "that requirements/*.lock pins; run `make clean setup`"
        ) from error

    bounds = {
        "num_replicas": 1,
        "max_ongoing_requests": MAX_RUNNING_REQUESTS,
        "max_queued_requests": MAX_WAITING_REQUESTS,
    }
    llm = LLMConfig(
        model_loading_config={"model_id": model_id, "model_source": str(model)},
        accelerator_config={"kind": "cpu" if config.device == "cpu" else "gpu"},
        placement_group_config={"bundles": [_bundle(config)]},
        engine_kwargs=engine_settings(config),
        deployment_config={**bounds, "ray_actor_options": {"num_cpus": 0}},
        log_engine_metrics=False,
    )
    # Not the ready-made app: it lets every web page that the user visits read the answers (CORS).
    app = FastAPI(openapi_url=None)
    add_exception_handling_middleware(app)
    app.add_middleware(SetRequestIdMiddleware)
    app.add_middleware(RequestLimits)
    ingress = make_fastapi_ingress(OpenAiIngress, app=app)
    return ray_serve.deployment(ingress, **bounds, ray_actor_options={"num_cpus": 0}).bind(
        llm_deployments={model_id: build_llm_deployment(llm)},
        model_cards={model_id: to_model_metadata(model_id, llm)},
    )


def _start(config: RunConfig, model: Path, *, model_id: str, port: int) -> None:
    # Before Ray starts, so that the engine's processes inherit it.
    os.environ.update(_environment(config))
    from ray import serve as ray_serve

    # Importing `ray.serve.llm` sends every library's remarks to this terminal.
    logging.disable(logging.WARNING)
    ray.init(
        address="local",
        num_cpus=1,
        include_dashboard=False,
        logging_level=logging.WARNING,
        log_to_driver=False,
    )
    # After `ray.init`, which puts its own SIGTERM handler in place.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    ray_serve.start(
        proxy_location="HeadOnly",
        http_options={
            "host": HOST,
            "port": port,
            "request_timeout_s": REQUEST_TIMEOUT_SECONDS,
        },
        logging_config={"log_level": "WARNING", "enable_access_log": False},
    )
    try:
        ray_serve.run(build_app(config, model, model_id))
    except (RuntimeError, TimeoutError) as error:
        raise ResourceError(f"{model} could not be served: {error}") from error


def _stop() -> None:
    from ray import serve as ray_serve

    if ray.is_initialized():
        ray_serve.shutdown()
        ray.shutdown()


def _bundle(config: RunConfig) -> dict[str, float]:
    return {"CPU": 1} if config.device == "cpu" else {"CPU": 1, "GPU": 1}


def _environment(config: RunConfig) -> dict[str, str]:
    return {
        **engine_environment(device=config.device, threads=config.cpu_threads),
        # Serve's engine is asynchronous and always lives in a process of its own.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "1",
        "VLLM_HOST_IP": HOST,
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
