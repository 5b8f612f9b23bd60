"""A program of the SDK over PostgreSQL and S3: the server is killed in the middle, then its machine is lost."""

from __future__ import annotations

import numpy as np
import pytest

import mint
from tests.postgres import Cluster

from .live import ALICE, LiveServer, tiny_model
from .sdk import SECONDS, run_of, train
from .test_survival import curve_of, draw, submit, texts


def test_training_survives_on_postgresql_and_s3(
    cluster: Cluster, s3_url: str, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TINKER_TELEMETRY", "0")
    folder = tmp_path_factory.mktemp("postgresql")
    stores = ["--database-url", cluster.database(), "--checkpoint-store", s3_url]
    server = LiveServer(folder, "--model", tiny_model(folder), *stores).start()
    with mint.ServiceClient(base_url=server.url, api_key=ALICE) as service:
        undisturbed = train(run_of(service), 0, 7)
        run = run_of(service)
        curve = train(run, 0, 2)
        sampler = run.save_weights_and_get_sampling_client().result(SECONDS)
        drawn = texts(draw(sampler))
        futures = submit(run, 2, 4)
        server.kill()
        server.start(wait=False)
        curve += curve_of(futures)
        np.testing.assert_allclose(curve, undisturbed[:6], rtol=1e-5)
        assert texts(draw(sampler)) == drawn
        saved = run.save_state("six").result(SECONDS).path
    assert not (folder / "data" / "mint.db").exists()
    assert server.stop() == 0, server.output
    assert "Traceback" not in server.output

    other = tmp_path_factory.mktemp("another-machine")
    server = LiveServer(other, "--model", tiny_model(folder), *stores).start()
    with mint.ServiceClient(base_url=server.url, api_key=ALICE) as service:
        run = service.create_training_client_from_state_with_optimizer(saved).result(SECONDS)
        np.testing.assert_allclose(train(run, 6, 1), undisturbed[6:], rtol=1e-5)
    assert server.stop() == 0, server.output
