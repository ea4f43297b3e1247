"""The service below /semcache/: what is let in, and how it is told what is wrong."""

from __future__ import annotations

import pytest
from test_credentials import token

STATS = "/semcache/v1/stats"


def error_of(response):
    told = response.json()["error"]
    assert told["status"] == response.status_code
    assert "Traceback" not in response.text
    return told


def test_stats_tell_what_was_answered(sidecar):
    """Sums, mode, version and what the tiers hold."""
    sidecar.chat()
    sidecar.chat()
    told = sidecar.http.get(STATS).json()
    assert (told["mode"], told["stats"]["hits"], told["stats"]["misses"]) == ("live", {"memory": 1}, 1)
    assert told["stats"]["tiers"]["memory"]["entries"] == 1
    assert told["breakers"] == {"memory": "closed"}
    assert told["uptime"] >= 0


def test_operators_token_reaches_all_and_a_tenants_does_not(serve):
    """Totals are of all tenants."""
    sidecar = serve(tokens=(token("o", "*", rights=["read"]), token("a", "acme", rights=["read"]), token("p", "acme")))
    assert error_of(sidecar.http.get(STATS))["status"] == 401
    assert error_of(sidecar.http.get(STATS, headers={"x-semcache-token": "x"}))["status"] == 401
    assert error_of(sidecar.http.get(STATS, headers={"cookie": "x-semcache-token=o"}))["status"] == 401
    assert error_of(sidecar.http.get(STATS, headers={"x-semcache-token": "p"}))["status"] == 403
    assert "operator" in error_of(sidecar.http.get(STATS, headers={"x-semcache-token": "a"}))["mend"]
    assert sidecar.http.get(STATS, headers={"x-semcache-token": "o"}).status_code == 200


@pytest.mark.parametrize("path", ["/semcache/v1/none", "/semcache/", "/semcache/v1/stats/"])
def test_path_that_is_not_there_is_404(sidecar, path):
    """With where to look."""
    assert "openapi.json" in error_of(sidecar.http.get(path))["mend"]


def test_other_method_is_405(sidecar):
    """With what there is."""
    refused = sidecar.http.post(STATS, json={})
    assert (refused.status_code, error_of(refused)["message"]) == (405, f"{STATS} takes GET, not POST")
