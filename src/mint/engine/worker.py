"""The worker process: `python -m mint.engine.worker FD`, where FD is its end of a socket pair.

The first message in is the model to load and the settings; the first message out is the `ModelInfo`, or the
error. After that: numbered commands in, numbered answers out. The process ends when the other side closes.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from threading import Lock, Thread
from typing import TypeAlias

import torch

from mint.config import EngineConfig, ModelSource
from mint.engine import channel
from mint.engine.constraints import ConstraintCompiler
from mint.engine.core import Command, LoraSite, ModelInfo, VisionInfo
from mint.engine.engine import Answer, Engine
from mint.engine.policies import read_policy
from mint.errors import MintError, ModelLoadError
from mint.models.loading import load, load_tokenizer, locate, stop_token_ids
from mint.models.token_bytes import token_bytes
from mint.observability.logs import FORMAT_VARIABLE, LogFormat, configure

PR_SET_PDEATHSIG = 1
"""prctl(2): the signal this process gets when its parent dies."""

Message: TypeAlias = tuple[int, Command]
Inbox: TypeAlias = "SimpleQueue[Message | None]"


def build_engine(
    source: ModelSource, config: EngineConfig, deliver: Callable[[Answer], None]
) -> tuple[Engine, ModelInfo]:
    """Load a model and everything around it; for `deliver` see `Engine`.

    Raises:
        ModelLoadError: the model cannot be found or cannot be served.
    """
    location = str(Path(source.location).expanduser())
    folder = locate(location)
    model = load(location, *_placement(config), checkpointing=config.gradient_checkpointing)
    vocab_size, max_context_length = model.config.vocab_size, model.config.max_position_embeddings
    if model.images is not None and model.images.sees_whole:
        policy, ends = read_policy(location, folder, vocab_size)
        tokenizer, texts = None, [b""] * vocab_size  # it acts, and writes nothing
    else:
        policy, tokenizer = None, load_tokenizer(location)
        ends, texts = stop_token_ids(location, model.config, tokenizer), token_bytes(tokenizer, vocab_size)
    constraints = ConstraintCompiler(tokenizer, vocab_size, ends)
    engine = Engine(model, source.name, config, texts, constraints, deliver)
    info = ModelInfo(
        name=source.name,
        tokenizer=str(folder) if Path(location).is_dir() else location,
        architecture=model.architecture,
        vocab_size=vocab_size,
        max_context_length=max_context_length,
        max_sample_length=min(max_context_length, engine.sample_capacity),
        stop_token_ids=ends,
        max_lora_rank=config.max_lora_rank,
        num_parameters=model.num_parameters,
        lora_sites=tuple(LoraSite(s.name, s.kind, s.in_features, s.out_features) for s in model.sites),
        vision=VisionInfo(model.images.size, model.images.num_tokens) if model.images is not None else None,
        policy=policy,
    )
    return engine, info


def _placement(config: EngineConfig) -> tuple[torch.dtype, torch.device]:
    """The base model's type and device.

    Raises:
        ModelLoadError: there is no such device.
    """
    has_cuda = torch.cuda.is_available()
    if config.device == "cuda" and not has_cuda:
        raise ModelLoadError("this machine has no CUDA device that torch can use")
    device = torch.device("cuda" if config.device == "cuda" or (config.device == "auto" and has_cuda) else "cpu")
    automatic = torch.bfloat16 if device.type == "cuda" else torch.float32
    return {"auto": automatic, "float32": torch.float32, "bfloat16": torch.bfloat16}[config.dtype], device


def run(connection: socket.socket) -> None:
    """Serve one server process until it closes the connection."""
    source, config = channel.receive(connection)
    sending = Lock()

    def send(message: object) -> None:
        with sending:
            connection.sendall(channel.encode(message))

    if config.num_threads:
        torch.set_num_threads(config.num_threads)
    try:
        engine, info = build_engine(source, config, send)
    except MintError as error:
        send(error)
        return
    send(info)
    gc.collect()
    gc.freeze()  # the model's modules live as long as the process: no later collection need look at them
    inbox: Inbox = SimpleQueue()
    Thread(target=_receive_all, args=(connection, inbox), daemon=True).start()
    while _submit_new(engine, inbox, send):
        for answer in engine.step():
            send(answer)


def _submit_new(engine: Engine, inbox: Inbox, send: Callable[[Answer], None]) -> bool:
    """Queue what has arrived, waiting for something if the engine is idle; False when the server has gone."""
    while not engine.has_work or not inbox.empty():
        message = inbox.get()
        if message is None:
            return False
        for answer in engine.submit(*message):
            send(answer)
    return True


def _receive_all(connection: socket.socket, inbox: Inbox) -> None:
    try:
        while True:
            inbox.put(channel.receive(connection))
    except (EOFError, OSError):
        pass  # the server has gone
    finally:
        inbox.put(None)  # also when this thread fails: the worker ends, and does not wait for ever


def _die_with_parent() -> None:
    """A worker that outlives a killed server would still be writing while the next server recovers."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def main() -> None:
    """Entry point of the process."""
    _die_with_parent()
    level = os.environ.get("MINT_LOG_LEVEL", "WARNING")
    configure(level, LogFormat(os.environ.get(FORMAT_VARIABLE, LogFormat.TEXT)))
    connection = socket.socket(fileno=int(sys.argv[1]))
    # when the server has gone, so has whoever waits for an answer
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        run(connection)


if __name__ == "__main__":
    main()
