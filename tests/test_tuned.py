"""A tuned policy and its file: what it serves, and what is refused."""

from __future__ import annotations

import json

import pytest

from semcache import SHARED, Cache, ConfigurationError, Neighbour, Request, Threshold, Verdict
from semcache.cli import main
from semcache.cli.doctor.near import examine_policy
from semcache.policy import Tuned
from semcache.policy.tuned import NOTHING, Proof, _digest
from semcache.traffic import meaning, parse
from semcache.wrap.default import policy_of

OTHERS, OWN, NONE = Proof(0.9, 400, 0), Proof(0.8, 900, 2), Proof(None, 500, 20)
FAMILIES = {b"own".hex(): OWN, b"none".hex(): NONE}


class Plain:
    identity = "plain"

    def __call__(self, texts):
        return [[1.0, 0.0]] * len(texts)


def policy(**given):
    return Tuned(
        **({"budget": 0.01, "confidence": 0.95, "embedder": "plain", "others": OTHERS, "families": FAMILIES} | given)
    )


def decided(tuned, similarity, family=b"", embedder="plain"):
    request = Request(b"k", family=family, embedder=embedder)
    return tuned.within(request).decide("asked", Neighbour(b"n", similarity, "stored"))


@pytest.mark.parametrize(
    ("family", "similarity", "verdict"),
    [
        (b"own", 0.85, Verdict.REUSE),
        (b"own", 0.79, Verdict.REJECT),
        (b"none", 1.0, Verdict.REJECT),
        (b"unknown", 0.85, Verdict.REJECT),
        (b"unknown", 0.9, Verdict.REUSE),
    ],
)
def test_each_family_has_its_cut(family, similarity, verdict):
    """A family that was measured alone has its own cut or none; all others have one together."""
    assert decided(policy(), similarity, family).verdict is verdict


def test_status_tells_what_it_serves_and_what_proves_it():
    """Cuts by family with the labels behind them, the budget they were proved for, and when and on what."""
    measured = {"made": "2026-11-27T10:00:00+00:00", "recording": "support.jsonl", "requests": 4000}
    status = policy(measured=measured, guards=("numbers",)).status()
    assert (status.budget, status.confidence, status.embedder) == (0.01, 0.95, "plain")
    assert [(one.name, one.cut) for one in status.families] == [(b"own".hex(), 0.8), (b"none".hex(), None)]
    assert (status.others.cut, status.others.wrong.labels, status.others.wrong.count) == (0.9, 400, 0)
    assert status.others.bound < 0.01
    told = str(status)
    assert "at most 0.01 wrong, at 95% confidence" in told
    assert "tuned at 2026-11-27T10:00:00+00:00 on support.jsonl (4,000 requests), for vectors of plain" in told
    assert "from 0.8 on; 900 labels, 2 of them wrong" in told
    assert "nothing, as no cut was proved by 500 labels" in told
    assert told.endswith("guards: numbers")


def test_status_of_a_policy_without_labels_says_that_it_serves_nothing():
    """Nothing measured is nothing served."""
    assert "nothing, as there were no labels" in str(policy(others=NOTHING, families={}).status())


def test_status_of_a_threshold_says_that_nothing_bounds_it():
    """A fixed cut keeps no budget, and names what measures it."""
    status = Threshold(0.92, guards=["negation", "numbers"]).status()
    assert (status.budget, status.cut, status.guards) == (None, 0.92, ("numbers", "negation"))
    assert "nothing bounds how many of them are wrong" in str(status)
    assert "`semcache replay`" in str(status)


def test_other_embedders_vectors_are_rejected():
    """Law 11: a similarity of another embedder's vectors says nothing."""
    decision = decided(policy(), 1.0, embedder="other")
    assert (decision.verdict, decision.cut) == (Verdict.REJECT, None)
    assert "tuned for another embedder: plain" in decision.reason


def test_words_say_what_is_served():
    """Who looks at a policy sees its budget and its cuts."""
    assert repr(policy()) == "Tuned(0.01, 2 families, others: 0.9)"
    assert str(policy()) == "tuned for at most 0.01 wrong: near matches from 0.8 to 0.9, by scope family on are served"
    assert "nothing near is served" in str(policy(others=Proof(None, 5, 0), families={}))


def test_file_comes_back_as_it_was(tmp_path):
    """What is written is read again, and nothing else is left in the folder."""
    path = tmp_path / "policy.json"
    written = policy(measured={"made": "2026-11-27", "requests": 800})
    written.write(path)
    written.write(path)
    assert Tuned.read(path) == written
    assert [one.name for one in tmp_path.iterdir()] == ["policy.json"]
    assert json.loads(path.read_text())["families"][b"own".hex()]["bound"] == pytest.approx(0.00698, abs=1e-5)


def changed(told, **fields):
    told = {**told, **fields}
    del told["digest"]
    return {**told, "digest": _digest(told)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text, told: text[: len(text) // 2], "is no policy file: it is not JSON"),
        (lambda text, told: "", "is no policy file: it is not JSON"),
        (lambda text, told: "[" * 100_000, "is no policy file: it is not JSON"),
        (lambda text, told: "[]", "is no policy file"),
        (lambda text, told: '{"cut": 0.9}', "is no policy file"),
        (lambda text, told: text.replace("0.9", "0.5"), "is damaged, or was changed by hand"),
        (lambda text, told: json.dumps(changed(told, semcache_policy=2)), "is of version 2"),
        (lambda text, told: json.dumps(changed(told, kind="learned")), "kind 'learned'"),
        (lambda text, told: json.dumps(changed(told, others={"cut": 0.9})), "is damaged: KeyError"),
        (lambda text, told: json.dumps(changed(told, families=[])), "is damaged: AttributeError"),
        (lambda text, told: json.dumps(changed(told, budget="much")), "is damaged: TypeError"),
        (
            lambda text, told: json.dumps(changed(told, others={"cut": 0.9, "labels": 400, "wrong": 9})),
            "names a cut that its labels do not prove",
        ),
    ],
)
def test_damaged_and_strange_files_are_refused(change, message, tmp_path):
    """A file that is not whole, not ours, or proves nothing is refused, and how to make it anew is said."""
    path = tmp_path / "policy.json"
    policy().write(path)
    text = path.read_text()
    path.write_text(change(text, json.loads(text)))
    with pytest.raises(ConfigurationError, match="make it anew with `semcache tune") as caught:
        Cache(policy=path)
    assert message in str(caught.value)


def test_missing_file_is_refused(tmp_path):
    """A path that leads nowhere is an error at construction, not a cache that serves nothing."""
    with pytest.raises(ConfigurationError, match=r"cannot be read \(No such file"):
        Cache(policy=str(tmp_path / "no.json"))
    with pytest.raises(ConfigurationError, match="or is the path of a file that `semcache tune` wrote"):
        Cache(policy=0.9)


@pytest.mark.semantic
def test_cache_with_another_embedder_is_refused(tmp_path):
    """Law 11: a policy is refused where another embedder makes the vectors."""
    path = tmp_path / "policy.json"
    policy(embedder="other").write(path)
    with pytest.raises(ConfigurationError, match="says nothing of those of 'plain': use that embedder"):
        Cache(embedder=Plain(), policy=path, tenant=SHARED)


def test_environment_and_command_name_a_policy_by_its_file(tmp_path):
    """SEMCACHE_POLICY and --policy take a file as they take "threshold:0.92"."""
    path = tmp_path / "policy.json"
    policy().write(path)
    assert policy_of(str(path)) == policy()
    assert isinstance(policy_of("threshold:0.9"), Threshold)


def test_doctor_looks_at_a_policy(tmp_path, capsys):
    """`semcache doctor --policy FILE` says what it serves, and fails where it is damaged."""
    path = tmp_path / "policy.json"
    policy().write(path)
    finding = examine_policy(str(path), None, "cpu")
    assert (finding.mark, "near matches from 0.8 to 0.9" in finding.told) == ("ok", True)
    assert examine_policy("threshold:0.9", None, "cpu").told == "threshold:0.9, which nobody has measured"
    path.write_text("{}")
    assert main(["doctor", "--policy", str(path), "--json"]) == 1
    found = {one["what"]: one for one in json.loads(capsys.readouterr().out)["findings"]}
    assert found["policy"]["mark"] == "failed"


def chat(text, turns=(), **fields):
    messages = [{"role": "system", "content": "be kind"}, *turns, {"role": "user", "content": text}]
    return {"model": "m", "messages": messages, **fields}


def test_family_is_the_scope_without_earlier_turns():
    """Calls that differ in earlier turns alone are of one family; in anything else around the text, of another."""

    def family(body):
        return meaning(parse(json.dumps({"ts": 0, "kind": "llm", "request": body}))).family

    turn = {"role": "user", "content": "hello"}
    assert family(chat("a")) == family(chat("b", [turn])) == family(chat("a", user="me"))
    assert family(chat("a")) != family(chat("a", temperature=0))
    assert family(chat("a")) != family(chat("a") | {"model": "n"})
