"""The checks against real Triton servers: both releases are up, and asked over HTTP as a canary's Service is."""

from __future__ import annotations

from pathlib import Path

import pytest

from pneumonia.inference.predictor import Predictor
from pneumonia.rollout.deploy import deploy
from pneumonia.rollout.rollout import connect_http
from tests.bundles import serving
from tests.rollout.clusters import NAMESPACE, RULES, SERVICE, make_world


@pytest.mark.slow
def test_real_servers_answer_the_probe_and_a_mixed_up_one_is_refused(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    with serving(world.releases[0]) as old, serving(world.releases[1]) as new:

        def connect(host: str, port: int) -> Predictor:
            assert host.endswith(f".{NAMESPACE}.svc") and port == 80
            server = old if host.startswith(f"{SERVICE}-predictor") else new
            return connect_http("127.0.0.1", server.ports["http"])

        rules = {**RULES, "latency_requests": 20, "connect": connect}
        cluster = world.cluster()
        result = deploy(str(world.releases[1]), world.bundles[1].path, world.images, cluster=cluster, **rules)
        assert result.outcome == "promoted", result.reasons
        assert result.figures["images"] == 10 and result.figures["probe_max_gap"] < 1e-3
        assert result.figures["latency_requests"] == 20 and result.figures["canary_p95_ms"] > 0
        # A storageUri that leads to another release than the one that is asked for.
        cluster = world.cluster()
        rules["connect"] = lambda host, port: connect_http("127.0.0.1", old.ports["http"])
        result = deploy(str(world.releases[1]), world.bundles[1].path, world.images, cluster=cluster, **rules)
        assert result.outcome == "refused"
        assert f"it serves {world.bundles[0].model_id}, expected {world.bundles[1].model_id}" in result.reasons[0]
