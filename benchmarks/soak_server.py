"""`mint serve` in which hours are seconds: it forgets, sweeps and gives clients up about a hundred times as fast.

python -m benchmarks.soak_server --port PORT --data-dir FOLDER --api-key KEY
"""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path

import uvloop

from mint.cli import serve
from mint.cli.holding import held
from mint.config import EngineConfig, ModelSource, ServerConfig
from mint.server import sweeper
from mint.tiny import NAME, model_path

SWEEP_SECONDS = 2.0
KV_CACHE_BYTES = 32 << 20
"""Little, so that it is full soon: it is not to be taken for a leak."""
SESSION_TIMEOUT, ANSWERS_KEPT, SESSIONS_KEPT = 10.0, 10.0, 20.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--api-key", required=True)
    arguments = parser.parse_args()
    sweeper.SWEEP_SECONDS, sweeper.FORGET_EVERY = SWEEP_SECONDS, 1
    serve.console.quiet = True
    config = ServerConfig(
        data_dir=arguments.data_dir,
        models=(ModelSource(NAME, str(model_path())),),
        api_keys=(arguments.api_key,),
        port=arguments.port,
        snapshot_seconds=1.0,
        session_timeout_seconds=SESSION_TIMEOUT,
        answers_kept_seconds=ANSWERS_KEPT,
        sessions_kept_seconds=SESSIONS_KEPT,
        engine=EngineConfig(kv_cache_bytes=KV_CACHE_BYTES),
    )
    with held(config) as mine, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve._run(mine))


if __name__ == "__main__":
    main()
