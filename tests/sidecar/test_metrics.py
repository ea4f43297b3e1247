"""Metrics: what Prometheus' own parser reads of them, and that they tell nobody's texts."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families
from test_credentials import token

from semcache.telemetry.prometheus import Metrics

DOCS = (Path(__file__).parents[2] / "docs" / "sidecar.md").read_text(encoding="utf-8")


def scraped(text):
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def total(samples, name, **labels):
    return sum(value for (own, told), value in samples.items() if own == name and labels.items() <= dict(told).items())


def test_scrape_tells_hits_misses_and_times(sidecar, models):
    """By tier and stage."""
    sidecar.chat("a very secret text")
    sidecar.chat("a very secret text")
    sidecar.chat(temperature=1)
    models.fail(500)
    sidecar.chat("other")
    answer = sidecar.http.get("/metrics")
    samples = scraped(answer.text)
    assert total(samples, "semcache_hits_total", tier="memory") == 1
    assert total(samples, "semcache_misses_total") == 2
    assert total(samples, "semcache_bypasses_total", reason="sampling") == 1
    assert (total(samples, "semcache_loads_total"), total(samples, "semcache_load_errors_total")) == (3, 1)
    assert total(samples, "semcache_lookup_seconds_count", kind="hit", tier="memory") == 1
    assert total(samples, "semcache_stage_seconds_count", stage="load") == 3
    assert total(samples, "semcache_tier", tier="memory", figure="entries") == 1
    assert total(samples, "semcache_saved_tokens_total", kind="completion") > 0
    assert "secret" not in answer.text
    assert "sk-1" not in answer.text


def test_every_metric_is_documented(sidecar):
    """And no other."""
    sidecar.chat()
    names = {sample for sample, _ in scraped(sidecar.http.get("/metrics").text)}
    names = {re.sub("_(bucket|count|sum|created)$", "", name) for name in names}
    documented = set(re.findall(r"`(semcache_[a-z_]+)`", DOCS)) - {"semcache_"}
    where_there_are_any = {f"semcache_{name}_total" for name in ("bypasses", "not_served", "faults", "hits")}
    assert documented - where_there_are_any <= names <= documented


def test_metrics_want_a_token_with_the_right_where_there_are_tokens(serve):
    """Who may look at what is all tenants': an operator."""
    tenants = (token("p", "acme", rights=["proxy"]), token("a", "acme", rights=["read"]))
    sidecar = serve(tokens=(*tenants, token("r", "*", rights=["read"])))
    assert sidecar.http.get("/metrics").status_code == 401
    for name in ("p", "a"):
        assert sidecar.http.get("/metrics", headers={"x-semcache-token": name}).status_code == 403
    assert sidecar.http.get("/metrics", headers={"x-semcache-token": "r"}).status_code == 200
    assert sidecar.http.get("/livez").status_code == 200


def test_metrics_of_a_cache_in_ones_own_process(open_cache):
    """Until they are closed; a cache that is gone leaves nothing."""
    cache, registry = open_cache("shop"), CollectorRegistry()
    metrics = Metrics(cache, registry)
    for _ in range(2):
        cache.get_or_load(cache.request("a"), lambda: "answer")
    assert registry.get_sample_value("semcache_misses_total", {"namespace": "shop"}) == 1
    labels = {"namespace": "shop", "kind": "hit", "tier": "memory"}
    assert registry.get_sample_value("semcache_lookup_seconds_count", labels) == 1
    metrics.close()
    assert registry.get_sample_value("semcache_misses_total", {"namespace": "shop"}) is None
    cache.get_or_load(cache.request("a"), lambda: "answer")


@pytest.mark.parametrize("reason", ["0.91 is below", "below the cut 0.92", "guard: numbers", "no tenant"])
def test_reasons_are_few(reason):
    """Of a reason what is about one call is no label."""
    from semcache.telemetry.prometheus import general

    (kind,) = general({reason: 3})
    assert not any(sign.isdigit() for sign in kind)
    assert kind
