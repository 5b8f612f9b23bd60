"""A program of the SDK over PostgreSQL, whose worker and whose server are killed in the middle."""

from __future__ import annotations

import numpy as np
import pytest

import mint
from tests.postgres import Cluster

from .live import ALICE, LiveServer, tiny_model
from .sdk import SECONDS, run_of, train
from .test_survival import curve_of, draw, submit, texts


def test_training_survives_on_postgresql(
    cluster: Cluster, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path_factory.mktemp("postgresql")
    server = LiveServer(folder, "--model", tiny_model(folder), "--database-url", cluster.database()).start()
    monkeypatch.setenv("TINKER_TELEMETRY", "0")
    with mint.ServiceClient(base_url=server.url, api_key=ALICE) as service:
        undisturbed = train(run_of(service), 0, 6)
        run = run_of(service)
        curve = train(run, 0, 2)
        sampler = run.save_weights_and_get_sampling_client().result(SECONDS)
        drawn = texts(draw(sampler))
        futures = submit(run, 2, 2)
        server.kill_worker()
        curve += curve_of(futures)
        futures = submit(run, 4, 2)
        server.kill()
        server.start(wait=False)
        curve += curve_of(futures)
        np.testing.assert_allclose(curve, undisturbed, rtol=1e-5)
        assert texts(draw(sampler)) == drawn
        server.wait_ready()
    assert not (folder / "data" / "mint.db").exists()
    assert server.stop() == 0, server.output
    assert "Traceback" not in server.output
