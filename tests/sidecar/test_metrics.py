"""Metrics: what Prometheus' own parser reads of them, and that they tell nobody's texts."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families
from test_credentials import token

from semcache.policy.status import FamilyStatus, Share
from semcache.sidecar.settings import Server
from semcache.telemetry.prometheus import Metrics, figures_of

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
    where_there_are_any = {
        *(f"semcache_{name}_total" for name in ("bypasses", "not_served", "faults", "hits", "refused", "spans")),
        *(f"semcache_policy_{name}" for name in ("budget", "cut", "wrong_share", "labels", "labels_needed")),
        *(f"semcache_policy_{name}" for name in ("families", "alarms")),
    }
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


def test_requests_are_counted_by_their_answers(serve, models):
    """Those that were refused, those that were handed through, and how the server behind answered."""
    sidecar = serve(limit_body="10kB")
    sidecar.chat()
    sidecar.http.get("/v1/models")
    sidecar.chat("x" * 20_000)
    sidecar.chat(headers={"cache-control": "only-if-cached"}, text="other")
    models.fail(429)
    sidecar.chat("third")
    samples = scraped(sidecar.http.get("/metrics").text)
    route = "/v1/chat/completions"
    assert total(samples, "semcache_requests_total", route=route, status="200") == 1
    assert total(samples, "semcache_requests_total", route="/v1/models") == 1
    assert total(samples, "semcache_requests_total", route=route, status="429") == 1
    assert total(samples, "semcache_refused_total", status="413") == 1
    assert total(samples, "semcache_refused_total", status="504") == 1
    assert total(samples, "semcache_handed_through_total") == 1
    assert (total(samples, "semcache_requests_running"), total(samples, "semcache_requests_limit")) == (0, 1000)
    asked = {"server": models.url}
    assert total(samples, "semcache_upstream_seconds_count", **asked, status="2xx") == 2
    assert total(samples, "semcache_upstream_seconds_count", **asked, status="429") == 1
    away = serve(upstream=(Server("http://127.0.0.1:9"),))
    away.chat()
    samples = scraped(away.http.get("/metrics").text)
    assert total(samples, "semcache_upstream_seconds_count", status="none") == 1


def test_tier_that_is_left_alone_is_told(open_cache):
    """And the mode; both are what an alert is made of."""
    cache, registry = open_cache("shop"), CollectorRegistry()
    Metrics(cache, registry)
    tier = {"namespace": "shop", "tier": "memory"}
    assert registry.get_sample_value("semcache_tier_open", tier) == 0
    (_, breaker), *_ = cache.chain.tiers
    for _ in range(5):
        breaker.failed()
    assert registry.get_sample_value("semcache_tier_open", tier) == 1
    cache.set_mode("off")
    assert registry.get_sample_value("semcache_mode", {"namespace": "shop", "mode": "off"}) == 1


class Own:
    """A policy of somebody's own, without a status."""

    def decide(self, text, neighbour):
        raise NotImplementedError


@pytest.mark.semantic
def test_state_of_the_policy_is_told_in_numbers(open_cache):
    """Of one that learns, of a fixed cut, and of one that says nothing of itself."""
    import semcache

    def told(policy):
        registry = CollectorRegistry()
        Metrics(open_cache("shop", policy=policy), registry)
        names = ("budget", "cut", "labels", "labels_needed", "alarms")
        return [registry.get_sample_value(f"semcache_policy_{name}", {"namespace": "shop"}) for name in names], registry

    assert told(semcache.Threshold(0.9, guards=None))[0] == [None, 0.9, None, None, None]
    assert told(Own())[0] == [None] * 5
    budget = semcache.ErrorBudget(0.02)
    values, _ = told(budget)
    assert values[:2] == [0.02, None]
    status = budget.status()
    family = FamilyStatus(
        "f", "", "alarm", 0.8, 400, 299, None, Share(4, 400), Share(0, 0), 0, 500, 400, 2, is_by_itself=True
    )  # fmt: skip
    figures = figures_of(replace(status, families=(family,)))
    assert {name: values for name, (_, _, values) in figures.items()} == {
        "budget": {"": 0.02}, "cut": {"": 0.8}, "labels": {"": 400}, "labels_needed": {"": 299}, "alarms": {"": 2},
        "wrong_share": pytest.approx({"estimate": 0.01, "lower": 0.0027, "upper": 0.0254}, abs=1e-3),
        "families": {"open": 0, "closed": 0, "alarm": 1},
    }  # fmt: skip
