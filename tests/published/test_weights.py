"""tinker-cookbook's way from a checkpoint to files for PEFT: `weights.download`, then `weights.build_lora_adapter`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import mint
from mint import types
from mint.tiny import model_path

from ..server.live import ALICE
from ..server.sdk import SECONDS, batch, train
from .conftest import Programs
from .hub import MODEL

PROGRAM = """
import sys
from tinker_cookbook import weights
path, model, folder = sys.argv[1:]
weights.download(tinker_path=path, output_dir=f"{folder}/raw")
weights.build_lora_adapter(base_model=model, adapter_path=f"{folder}/raw", output_path=f"{folder}/peft")
"""


@pytest.mark.slow
def test_downloaded_weights_compute_in_peft_what_the_server_computes(programs: Programs, tmp_path: Path) -> None:
    with mint.ServiceClient(base_url=programs.server.url, api_key=ALICE) as service:
        run = service.create_lora_training_client(MODEL, rank=4, seed=1).result(SECONDS)
        train(run, 0, 3)
        path = run.save_state("to-download").result(SECONDS).path
        data = batch(9)
        outputs = run.forward(data, "cross_entropy").result(SECONDS).loss_fn_outputs
    process = programs.start("-c", PROGRAM, path, MODEL, str(tmp_path))
    programs.finish(process, "tinker_cookbook.weights: download, then build_lora_adapter")
    for datum, output in zip(data, outputs, strict=True):
        np.testing.assert_allclose(output["logprobs"].to_numpy(), peft_logprobs(tmp_path / "peft", datum), atol=1e-4)


def peft_logprobs(adapter: Path, datum: types.Datum) -> np.ndarray:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model_path(), dtype=torch.float32), adapter)
    with torch.no_grad():
        logits = model(torch.tensor([datum.model_input.to_ints()])).logits[0]
    targets = datum.loss_fn_inputs["target_tokens"].to_torch().long()
    return torch.log_softmax(logits, -1).gather(1, targets[:, None])[:, 0].numpy()
