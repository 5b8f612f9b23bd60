"""Random models for benchmarks, Qwen3 and PaliGemma: made on the spot, without a network, the same every time.

    python -m benchmarks.models [FOLDER]

Makes them and prints the folders as `mint serve --model` takes them. What such a model says is noise; what it costs is
what a trained one of its shape costs.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from random import Random
from shutil import copy, copytree
from tempfile import TemporaryDirectory, gettempdir
from typing import Any

SEED = 0
SMALL, TINY, POLICY = "small-qwen3", "tiny-qwen3", "small-paligemma"
SHAPES: Mapping[str, Mapping[str, Any]] = {
    SMALL: {
        "vocab_size": 32000,
        "tie_word_embeddings": False,
        "hidden_size": 512,
        "num_hidden_layers": 8,
        "intermediate_size": 1536,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 64,
        "max_position_embeddings": 4096,
    },
    TINY: {
        "vocab_size": 2048,
        "tie_word_embeddings": True,
        "hidden_size": 128,
        "num_hidden_layers": 4,
        "intermediate_size": 384,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 4096,
    },
    POLICY: {
        "projection_dim": 512,
        "image_token_index": 4095,
        "bos_token_id": 2,
        "eos_token_id": 1,
        "text_config": {
            "model_type": "gemma",
            "vocab_size": 4096,
            "hidden_size": 512,
            "intermediate_size": 2048,
            "num_hidden_layers": 6,
            "num_attention_heads": 8,
            "num_key_value_heads": 1,
            "head_dim": 64,
            "max_position_embeddings": 1024,
        },
        # to the language model as in PaliGemma 3B: a fifth of its weights, 256 tokens for an image
        "vision_config": {
            "model_type": "siglip_vision_model",
            "hidden_size": 256,
            "intermediate_size": 1024,
            "num_hidden_layers": 5,
            "num_attention_heads": 4,
            "image_size": 224,
            "patch_size": 14,
            "projection_dim": 512,
            "vision_use_head": False,
        },
    },
}
END_OF_TEXT = "<|endoftext|>"


def model_folder(name: str, root: Path | None = None) -> Path:
    """The folder of one of SHAPES under `root`, made if it is not there; the temporary directory by default."""
    root = root or Path(gettempdir()) / f"mint-benchmarks-{os.getuid()}"
    shape = SHAPES[name]
    # a changed shape or a changed recipe is another folder
    recipe = json.dumps([SEED, shape], sort_keys=True).encode() + Path(__file__).read_bytes()
    folder = root / f"{name}-{sha256(recipe).hexdigest()[:8]}"
    if not folder.is_dir():
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        with TemporaryDirectory(dir=root) as staged:
            made = Path(staged) / "model"
            (_make_policy if name == POLICY else _make)(made, shape)
            made.rename(folder)  # whole or not at all, also when this program is stopped half-way
    return folder


def _make(folder: Path, shape: Mapping[str, Any]) -> None:
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    tokenizer = _tokenizer(int(shape["vocab_size"]))
    end = tokenizer.eos_token_id
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = Qwen3ForCausalLM(Qwen3Config(**shape, eos_token_id=end, bos_token_id=end))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _make_policy(folder: Path, shape: Mapping[str, Any]) -> None:
    """With the built-in policy's tokenizers, whose ids are among the first of any vocabulary, and its codec."""
    import torch
    from transformers import PaliGemmaConfig, PaliGemmaForConditionalGeneration
    from transformers.utils import logging

    from mint.tiny_vla import model_path

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = PaliGemmaForConditionalGeneration(PaliGemmaConfig(**shape))
    model.save_pretrained(folder)
    copy(model_path() / "tokenizer.json", folder)
    copytree(model_path() / "fast", folder / "fast")


def _tokenizer(vocab_size: int) -> Any:
    """Byte-level BPE (Sennrich et al., 2016, arXiv 1508.07909) with exactly that many entries."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bare = Tokenizer(models.BPE())
    bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bare.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bare.train_from_iterator(_words(2 * vocab_size), trainer)
    if bare.get_vocab_size() != vocab_size:
        raise RuntimeError(f"the words fill {bare.get_vocab_size()} entries, not {vocab_size}")
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=bare, eos_token=END_OF_TEXT, bos_token=END_OF_TEXT, pad_token=END_OF_TEXT
    )


def _words(count: int) -> Iterator[str]:
    """Words of no language, of two to five syllables: enough different ones for any vocabulary, from a seed alone."""
    rng = Random(SEED)
    syllables = [first + second for first in "bdfghjklmnprstvwz" for second in "aeiou"]
    for _ in range(count):
        yield " " + "".join(rng.choices(syllables, k=rng.randint(2, 5)))


def main() -> None:
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    for name in SHAPES:
        print(f"{name}={model_folder(name, root)}")


if __name__ == "__main__":
    main()
