"""Settings, in two groups: the server's and the engine worker's.

Everyone may import this module; it imports none of ours.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Literal

Device = Literal["auto", "cpu", "cuda"]
DType = Literal["auto", "float32", "bfloat16"]


class Durability(StrEnum):
    """What everything that was acknowledged survives: the death of any process, or also a loss of power."""

    PROCESS = "process"
    POWER = "power"


DEFAULT_PORT = 8000
DEFAULT_DATA_DIR = Path("~/.mint/data")


@dataclass(frozen=True)
class ModelSource:
    """A base model to serve: the name clients use, and the local folder or Hugging Face name it is loaded from."""

    name: str
    location: str


@dataclass(frozen=True)
class EngineConfig:
    """Limits of one engine worker.

    Attributes:
        max_batch_tokens: tokens of one training micro-batch, or of prompts in a step of sampling beside which none
            decodes; bounds the memory of a pass.
        max_resident_runs: runs whose buffers are in the device's memory; others wait on disk.
        max_lora_rank: largest rank a run may ask for.
        kv_cache_bytes: memory for keys and values of live samples. None: 512 MiB, or what one sequence of the model's
            context takes (of 32,768 tokens at most) where that is more and fits in a quarter of the free memory, on
            CUDA the device's.
        kv_block_size: tokens in one block of that memory.
        max_decode_batch: samples that may decode together.
        max_prefill_tokens: tokens of prompts that are computed in a step beside samples that decode, which wait for it.
        revision_cache_bytes: memory for adapter revisions that are kept for sampling.
        image_cache_bytes: memory for what the vision tower has made of images, of a model that has one.
        scratch_dir: for the files of runs that wait on disk, which mean nothing to the next process; None is the
            system's place for temporary files.
        gradient_checkpointing: compute each layer again in the backward pass instead of keeping its insides; saves
            memory, costs a third of the speed.
        num_threads: threads of the worker's tensor library; 0 leaves the choice to it.
        device: where the base model lives; "auto" is a CUDA device where there is one, else the CPU.
        dtype: of the base model; "auto" is bfloat16 on CUDA and float32 on the CPU. Adapters are always float32.
    """

    max_batch_tokens: int = 4096
    max_resident_runs: int = 64
    max_lora_rank: int = 256
    kv_cache_bytes: int | None = None
    kv_block_size: int = 16
    max_decode_batch: int = 256
    max_prefill_tokens: int = 512
    revision_cache_bytes: int = 512 << 20
    image_cache_bytes: int = 256 << 20
    scratch_dir: Path | None = None
    gradient_checkpointing: bool = False
    num_threads: int = 0
    device: Device = "auto"
    dtype: DType = "auto"


@dataclass(frozen=True)
class ServerConfig:
    """What `mint serve` runs with.

    Attributes:
        database_url: of PostgreSQL; None is SQLite in the data folder.
        durability: what is promised of the database; checkpoints and snapshots are always flushed to the disk.
        checkpoint_store: URL of an object store that checkpoints are kept in; None is the data folder.
        checkpoint_cache_bytes: of checkpoints of an object store that are also on this disk.
        api_keys: keys that may talk to this server besides those in its database; each is a tenant of its own.
        admin_keys: as `api_keys`, of those who run the server.
        jwt_auth: has the SDK exchange its key for a token that lives for an hour.
        long_poll_seconds: how long `retrieve_future` is held open; the SDK gives up after 45.
        gap_seconds: how long a run waits for a sequence number that never arrives before it goes on without it; the SDK
            goes on sending one for 300.
        snapshot_seconds: between two snapshots of a run that is in training; a recovery computes about so much again.
        max_body_bytes: largest request body, after decompression.
        max_waiting_samples: sample requests of one key that may wait for a place in a worker; the next is told to come
            again.
        session_timeout_seconds: how long a session is believed in without a heartbeat, which the SDK sends every 10;
            then its samples are cancelled, its revisions without a name removed, and its runs leave the engine. A
            sample without a session is cancelled when nobody has asked for its result for so long.
        answers_kept_seconds: how long after its end an operation's result can be asked for again, at least; and what a
            finished session leaves, but for its checkpoints.
        sessions_kept_seconds: how long a client may be silent and still find its session, and its runs as they were.
    """

    data_dir: Path
    models: tuple[ModelSource, ...]
    api_keys: tuple[str, ...] = ()
    admin_keys: tuple[str, ...] = ()
    jwt_auth: bool = False
    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    database_url: str | None = None
    durability: Durability = Durability.PROCESS
    checkpoint_store: str | None = None
    checkpoint_cache_bytes: int = 20 << 30
    long_poll_seconds: float = 25.0
    gap_seconds: float = 300.0
    snapshot_seconds: float = 10.0
    max_body_bytes: int = 256 << 20
    max_waiting_samples: int = 4096
    session_timeout_seconds: float = 300.0
    answers_kept_seconds: float = 24 * 3600.0
    sessions_kept_seconds: float = 7 * 24 * 3600.0
    engine: EngineConfig = field(default_factory=EngineConfig)

    @property
    def checkpoint_dir(self) -> Path:
        """Where checkpoints are written, and committed ones read."""
        return self.data_dir / "checkpoints"

    @property
    def upload_dir(self) -> Path:
        """Where uploads are kept while they come in."""
        return self.data_dir / "uploads"

    @property
    def snapshot_dir(self) -> Path:
        """Where the states of runs are kept that recovery begins from."""
        return self.data_dir / "snapshots"
