"""A real Prometheus scrapes a real sidecar: what PromQL says of it, and what our rules and dashboard are made of."""

from __future__ import annotations

import json
import re
from functools import partial

import pytest
from prometheus import EXAMPLES, prometheus, promtool, shop  # noqa: F401 - the last two are fixtures

pytestmark = pytest.mark.system

DASHBOARD = json.loads((EXAMPLES / "grafana" / "semcache.json").read_text(encoding="utf-8"))
DOCS = (EXAMPLES.parent / "docs" / "sidecar.md").read_text(encoding="utf-8")
DOCUMENTED = set(re.findall(r"`(semcache_[a-z_]+)`", DOCS))


# What a sidecar without near matches, faults or a collector has nothing of.
EMPTY = {
    "Wrong share", "Cut", "Labels", "Faults", "Why calls went by", "Why near matches were not served",
    "Spans for the collector",
}  # fmt: skip


def expressions():
    """Return each expression of the dashboard, with what Grafana puts in the place of its variables."""
    told = [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", ())]
    return [one.replace("$__rate_interval", "1m").replace("$__range", "1h") for one in told]


def test_prometheus_scrapes_what_the_sidecar_did(shop, prometheus):  # noqa: F811
    """Hits, misses, loads, times, requests and what the server behind said, by PromQL."""
    shop.chat("a")
    shop.chat("a")
    shop.chat("a", temperature=1)
    shop.models.fail(503)
    shop.chat("b")
    prometheus.until(lambda: prometheus.value('sum(semcache_requests_total{job="semcache"})') == 4)
    for expression, expected in {
        'up{job="semcache"}': 1,
        'semcache_hits_total{namespace="shop", tier="memory"}': 1,
        "sum(semcache_misses_total)": 2,
        "sum(semcache_loads_total)": 3,
        "sum(semcache_load_errors_total)": 1,
        'sum(semcache_bypasses_total{reason="sampling"})': 1,
        'sum(semcache_requests_total{status="503"})': 1,
        'sum(semcache_upstream_seconds_count{status="5xx"})': 1,
        'sum(semcache_lookup_seconds_count{kind="hit"})': 1,
        'histogram_quantile(1, sum by (le) (semcache_lookup_seconds_bucket{kind="hit"})) < bool 1': 1,
        'semcache_mode{mode="live"}': 1,
        "max(semcache_tier_open)": 0,
        "sum(semcache_saved_tokens_total) > bool 0": 1,
    }.items():
        assert prometheus.value(expression) == expected, expression


def test_rules_are_evaluated_and_an_alert_is_raised(shop, prometheus):  # noqa: F811
    """All of them without an error; of a sidecar that has ended we are told."""

    def rules():
        return [rule for group in prometheus.ask("rules")["groups"] for rule in group["rules"]]

    prometheus.until(lambda: prometheus.value('up{job="semcache"}') == 1)
    told = prometheus.until(lambda: (found := rules()) and all(one["health"] == "ok" for one in found) and found)
    assert len(told) == 13
    assert [one["name"] for one in told if one.get("state", "inactive") != "inactive"] == []
    shop.close()
    prometheus.until(lambda: any(one["name"] == "SemcacheDown" and one["state"] == "pending" for one in rules()))


def test_each_expression_of_the_dashboard_is_one_and_names_what_there_is(prometheus):  # noqa: F811
    """Prometheus' own parser takes it; its metrics are those that docs/sidecar.md has."""
    prometheus.until(lambda: prometheus.value('up{job="semcache"}') == 1)
    for expression in expressions():
        prometheus.ask("query", query=expression)
        names = {re.sub("_(bucket|count|sum)$", "", name) for name in re.findall(r"\bsemcache_[a-z_]+", expression)}
        assert names <= DOCUMENTED, expression


def test_dashboard_finds_what_was_counted(shop, prometheus):  # noqa: F811
    """Its variables replaced by what they are when nothing is chosen."""
    shop.chat("a")
    shop.chat("a")
    panels = {one["title"]: one["targets"] for one in DASHBOARD["panels"] if one["type"] != "row"}

    def has(title):
        told = [re.sub(r"\$\w+", ".*", one["expr"].replace("$__rate_interval", "1m")) for one in panels[title]]
        return any(prometheus.ask("query", query=one)["result"] for one in told)

    for title in panels.keys() - EMPTY:
        prometheus.until(partial(has, title))


def test_promtool_has_nothing_to_say_of_the_metrics(shop):  # noqa: F811
    """Names, types and help are as Prometheus wants them."""
    shop.chat("a")
    shop.chat("a")
    assert promtool("check", "metrics", said=shop.scrape()) == (0, "")


def test_rules_and_configuration_are_valid():
    """As promtool reads them."""
    for what, name in (("rules", "alerts.yml"), ("config", "prometheus.yml")):
        status, told = promtool("check", what, EXAMPLES / "prometheus" / name)
        assert status == 0, told


def test_each_alert_is_raised_by_what_it_is_for():
    """And none while all is well: promtool runs the rules over days of samples."""
    from pathlib import Path

    status, told = promtool("test", "rules", Path(__file__).parent / "alerts_test.yml")
    assert status == 0, told


def test_alerts_name_what_there_is():
    """Only metrics that docs/sidecar.md has, but for Prometheus' own."""
    text = (EXAMPLES / "prometheus" / "alerts.yml").read_text(encoding="utf-8")
    names = {re.sub("_(bucket|count|sum)$", "", name) for name in re.findall(r"\bsemcache_[a-z_]+", text)}
    assert names <= DOCUMENTED


def test_dashboard_is_one():
    """What Grafana wants of one: panels that do not overlap, ids of their own, variables that there are."""
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    assert DASHBOARD["uid"] == "semcache"
    assert DASHBOARD["schemaVersion"] >= 36
    taken = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        own = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24
        assert not own & taken, panel["title"]
        taken |= own
        assert panel["type"] == "row" or (panel["targets"] and panel["description"])
    variables = {one["name"] for one in DASHBOARD["templating"]["list"]}
    used = {name for one in expressions() for name in re.findall(r"\$(\w+)", one)}
    assert used <= variables
