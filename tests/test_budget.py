"""An error budget by its labels alone: what opens, what closes, what is drawn, and what processes share."""

from __future__ import annotations

import pytest

import semcache
from semcache.model import Neighbour, Request
from semcache.policy.label import Label, Source
from semcache.policy.tally import MAX_FAMILIES, SEASON_DAYS, SEASONS, day_of, season_of

SEASON_SECONDS = SEASON_DAYS * 86_400


class Bench:
    """A policy bound to a clock of our own, and labels for it."""

    def __init__(self, policy=None, audit=0.02):
        self.now, self.told, self.count = SEASON_SECONDS * 100.0, [], 0
        self.policy = policy or semcache.ErrorBudget(0.05)
        self.policy.bind(lambda: True, lambda: self.now, audit, lambda what, _name: self.told.append(what))
        self.policy.within(self.request())

    @staticmethod
    def request(family=b"family", key=b"asked"):
        return Request(key, b"scope", "how do i pay", embedder="e", family=family)

    def label(self, count, is_right=True, family=b"family", score=0.95, source=Source.AUDIT, stored=None):
        for _ in range(count):
            self.count += 1
            asked = b"%d" % self.count
            self.policy.learn(
                Label(family, asked, stored or asked, "a", "b", score, score, is_right, source)
            )  # fmt: skip

    def verdict(self, score=0.95, family=b"family"):
        neighbour = Neighbour(b"stored", score, "how to pay")
        return self.policy.within(self.request(family)).decide("how do i pay", neighbour).verdict.value


def merged(*books):
    """Return the sums that a store makes of what processes book."""
    sums = {}
    for book in books:
        for day, amounts in book.items():
            for name, amount in amounts.items():
                sums[day, name] = sums.get((day, name), 0.0) + amount
    return sums


def test_nothing_is_served_until_labels_allow_it():
    """At 5% some hundred labels of good matches open; one fewer than needed does not."""
    bench = Bench()
    assert bench.verdict() == "reject"
    bench.label(114)
    assert bench.verdict() == "reject"
    bench.label(1)
    assert bench.verdict() == "reuse"
    assert any("opened: near matches from" in what for what in bench.told)


def test_below_the_open_cut_nothing_is_served():
    """Good labels high up say nothing of what lies below."""
    bench = Bench()
    bench.label(300, score=0.95)
    bench.label(60, is_right=False, score=0.87)
    assert (bench.verdict(0.95), bench.verdict(0.88)) == ("reuse", "reject")


@pytest.mark.parametrize("is_right", [False, None])
def test_what_is_wrong_or_not_known_opens_nothing(is_right):
    """A comparator that does not know is taken for one that says no."""
    bench = Bench()
    bench.label(300, is_right=is_right)
    assert bench.verdict() == "reject"
    assert bench.policy.status().families[0].wrong.share == 1.0


def test_labels_of_misses_only_inform():
    """What is not of the sample opens nothing, and is told apart."""
    bench = Bench()
    bench.label(900, source=Source.MISS)
    assert bench.verdict() == "reject"
    told = bench.policy.status().families[0]
    assert (told.labels, told.informing) == (0, 900)


def test_right_labels_of_one_entry_are_capped():
    """A popular entry is one entry: 20 of its right labels count, and of a pair one; wrong ones always count."""
    bench = Bench()
    bench.label(600, stored=b"popular")
    assert bench.verdict() == "reject"
    assert bench.policy.status().families[0].labels == 20
    for _ in range(50):
        bench.policy.learn(Label(b"family", b"one", b"pair", "a", "b", 0.95, 0.95, True, Source.AUDIT))
    assert bench.policy.status().families[0].labels == 21
    bench.label(30, is_right=False, stored=b"popular")
    assert bench.policy.status().families[0].labels == 51


def test_a_family_with_few_labels_is_decided_with_the_others():
    """What all small families have in common opens for them; a large one lives by its own verdict."""
    bench = Bench()
    for number in range(60):
        bench.label(5, family=b"small %d" % number)
    assert bench.verdict(family=b"small 1") == bench.verdict(family=b"never seen") == "reuse"
    bench.label(150, is_right=False, score=0.93, family=b"bad")
    assert (bench.verdict(family=b"bad"), bench.verdict(family=b"small 1")) == ("reject", "reuse")


def test_families_are_bounded():
    """A system prompt with a clock in it makes a family of each call: they share what is known, and take no room."""
    bench = Bench()
    for number in range(120):
        bench.label(1, family=b"%d" % number)
        bench.policy.saw(bench.request(b"%d" % number), None)
    assert len(bench.policy.status().families) < 50
    assert len(bench.policy._labels_here) < 50
    assert bench.policy.status().others.labels == 120
    assert len(bench.policy.taken()) == 1


def families_of(book):
    """Return the families that names of a store tell of."""
    names = {name.split("|")[1] for amounts in book.values() for name in amounts}
    return {name for name in names if not name.startswith("others")}


def test_a_season_has_so_many_families_in_the_store():
    """However many come and go, its names there are bounded; what more there are wait here for the next season."""
    one = Bench()
    known = set()
    for number in range(120):
        one.label(10, family=b"%d" % number)
        known |= families_of(one.policy.taken())
    assert len(known) == MAX_FAMILIES
    one.label(10, family=b"119")
    assert not families_of(one.policy.taken())
    one.now += SEASON_SECONDS
    one.label(10, family=b"119")
    assert len(families_of(one.policy.taken())) == 1


def test_what_waits_for_a_store_is_bounded_where_there_is_none():
    """Families come and go for years, and nobody takes what was counted: what is kept of them does not grow."""
    bench, sizes = Bench(), []
    for season in range(SEASONS + 3):
        for number in range(70):
            bench.label(9, family=b"%d %d" % (season, number))
        policy = bench.policy
        sizes.append(sum(map(len, (policy._mine, policy._changed, policy._returned, policy._shared))))
        bench.now += SEASON_SECONDS
    assert sizes[-1] <= sizes[SEASONS] < 4 * SEASONS * MAX_FAMILIES


def test_an_alarm_of_a_family_that_was_forgotten_is_booked():
    """Another process that counts on with the family must hear of it."""
    bench = Bench()
    bench.label(1000, family=b"bad")
    bench.label(8, is_right=False, family=b"bad")
    day = day_of(season_of(bench.now))
    (mine,) = {name.partition(":")[2] for name in bench.policy._families}
    others = [f"trust|{number:016x}:{mine}|1.0|right.1" for number in range(MAX_FAMILIES)]
    bench.policy.take_over({(day, name): 5000.0 for name in others})
    assert not any(family.alarms for family in bench.policy.status().families)
    bases = [name for name in next(iter(bench.policy.taken().values())) if "|base|" in name and "others" not in name]
    assert [name.rpartition(".")[2] for name in bases] == ["1"]


def test_a_family_after_an_alarm_is_closed_for_who_begins_too():
    """It has no labels of its own yet, and is not served by what the others' labels allow."""
    one, again = Bench(), Bench()
    one.label(1000)
    one.label(8, is_right=False)
    for number in range(60):
        one.label(5, family=b"small %d" % number)
    again.policy.take_over(merged(one.policy.taken()))
    assert (again.verdict(family=b"never seen"), again.verdict()) == ("reuse", "reject")


def test_nothing_is_open_where_a_store_lost_whose_labels_were_whose():
    """Once names had run out, wrong labels may stand under none: until they are too old, nothing is proved."""
    bench = Bench()
    bench.label(200)
    store = merged(bench.policy.taken())
    day = day_of(season_of(bench.now))
    bench.policy.take_over(store | {(day, "trust|other|other|other"): 1.0})
    assert bench.verdict() == bench.verdict(family=b"never seen") == "reject"
    assert any("begin anew" in what for what in bench.told)
    bench.label(200)
    assert bench.verdict() == "reject"
    bench.policy.take_over(store)
    assert bench.verdict() == "reuse"


def test_answers_that_change_close_the_family_until_labels_are_fresh():
    """Within 200 audited hits there is an alarm, nothing old counts any more, and fresh labels open anew."""
    bench = Bench()
    bench.label(1000)
    assert bench.verdict() == "reuse"
    bench.told.clear()
    hits = 0
    while bench.verdict() == "reuse":
        bench.label(1, is_right=hits % 4 != 0)
        hits += 1
    assert hits <= 200
    assert [what for what in bench.told if "alarm" in what]
    told = bench.policy.status().families[0]
    assert (told.state, told.alarms, told.labels) == ("alarm", 1, 0)
    bench.label(100)
    assert bench.verdict() == "reject"
    bench.label(200)
    assert bench.verdict() == "reuse"


def test_a_second_test_is_given_less_of_alpha():
    """After an alarm more labels are needed than at first: what was spent is spent."""
    bench = Bench()
    bench.label(1000)
    bench.label(20, is_right=False)
    assert bench.verdict() == "reject"
    needed = 0
    while bench.verdict() == "reject":
        bench.label(1)
        needed += 1
    assert bench.policy.status().families[0].alarms == 1
    assert needed > 115 + 20


def test_a_retrained_score_begins_a_test_of_its_own():
    """What opened the old one opens nothing now, and the new one needs more labels than the first did."""
    bench = Bench()
    bench.label(200)
    assert bench.verdict() == "reuse"
    bench.policy.rescored(2)
    assert bench.verdict() == "reject"
    bench.label(115)
    assert bench.verdict() == "reject"
    bench.label(60)
    assert bench.verdict() == "reuse"


def test_a_learned_score_ranks_in_the_place_of_the_cosine():
    """Where a neighbour has one, cut and labels are of it."""
    bench = Bench()
    bench.label(200, score=0.97)
    scored = [Neighbour(b"stored", 0.5, "how to pay", score=0.99), Neighbour(b"stored", 0.99, "how to pay", score=0.5)]
    within = bench.policy.within(bench.request())
    decisions = [within.decide("how do i pay", neighbour) for neighbour in scored]
    assert [decision.verdict.value for decision in decisions] == ["reuse", "reject"]
    assert decisions[0].reason.startswith("score 0.9900 >= ")


def test_old_evidence_fades():
    """What was learned some seasons ago serves nothing today, labels or not."""
    bench = Bench()
    bench.label(1000)
    bench.now += (SEASONS - 1) * SEASON_SECONDS
    bench.policy.saw(bench.request(), None)
    assert bench.verdict() == "reuse"
    bench.now += SEASON_SECONDS
    bench.policy.saw(bench.request(), None)
    assert bench.verdict() == "reject"


def test_two_processes_know_what_one_would():
    """Counts add: half of the labels here, half there, and both open as one does with all."""
    one, other, alone = Bench(), Bench(), Bench()
    one.label(100)
    other.count = 100
    other.label(100)
    alone.label(200)
    assert (one.verdict(), other.verdict(), alone.verdict()) == ("reject", "reject", "reuse")
    store = merged(one.policy.taken(), other.policy.taken())
    for bench in (one, other):
        bench.policy.take_over(store)
        assert bench.verdict() == "reuse"
    here, there = one.policy.status().families[0], alone.policy.status().families[0]
    assert (here.cut, here.labels, here.wrong) == (there.cut, there.labels, there.wrong)


def test_what_is_not_booked_yet_is_not_lost_when_the_store_is_read():
    """A read tells of all others; our own latest labels are added to it, once."""
    bench = Bench()
    bench.label(100)
    store = merged(bench.policy.taken())
    bench.label(100)
    for _ in range(3):
        bench.policy.take_over(store)
    assert bench.policy.status().families[0].labels == 200
    for day, amounts in bench.policy.taken().items():
        bench.policy.put_back(day, amounts)
    assert sum(sum(amounts.values()) for amounts in bench.policy.taken().values()) > 100


def test_a_new_process_begins_with_what_is_known():
    """A restart forgets nothing: not the labels, not the alarms, not how much of alpha was spent."""
    bench = Bench()
    bench.label(1000)
    bench.label(20, is_right=False)
    bench.label(10)
    store = merged(bench.policy.taken())
    again = Bench()
    again.policy.take_over(store)
    before, after = bench.policy.status().families[0], again.policy.status().families[0]
    assert (after.labels, after.needed, after.alarms) == (before.labels, before.needed, before.alarms)
    assert after.alarms == 1


def test_an_alarm_of_one_process_closes_all():
    """Who hears of it serves nothing either, whatever it knew before."""
    one, other = Bench(), Bench()
    one.label(500)
    store = merged(one.policy.taken())
    other.policy.take_over(store)
    assert other.verdict() == "reuse"
    one.label(30, is_right=False)
    for day, amounts in one.policy.taken().items():
        for name, amount in amounts.items():
            store[day, name] = store.get((day, name), 0.0) + amount
    other.policy.take_over(store)
    assert other.verdict() == "reject"


def test_what_others_audit_can_alarm_here():
    """Wrong labels that come from the store are looked at as our own are."""
    one, other = Bench(), Bench()
    one.label(600)
    store = merged(one.policy.taken())
    other.policy.take_over(store)
    day = next(iter(store))[0]
    test = next(name for at, name in store if "|right." in name and "others" not in name)
    store[day, test.replace("right", "wrong")] = 60.0
    other.policy.take_over(store)
    assert any("alarm" in what for what in other.told)


def test_foreign_names_in_the_store_are_left_out():
    """What another version wrote, or an overflow, is nobody's label."""
    bench = Bench()
    day = bench.policy.days()[-1]
    names = [
        "trust|other|other|other",
        "trust|x",
        "hits|a|b",
        "trust|f|1.0|right.99",
        "trust|f|1.0|new.1",
        "trust|f|x.y|right.1",
    ]
    bench.policy.take_over({(day, name): 5.0 for name in names} | {("2026-11-27", "trust|f|1.0|right.1"): 5.0})
    assert bench.policy.status().families == ()


def test_a_report_informs_and_makes_no_bound():
    """People report what they notice: the pair is blocked, and the sample says what the others are worth."""
    bench = Bench()
    bench.label(115)
    bench.label(3, source=Source.REPORT)
    assert bench.verdict() == "reuse"
    assert bench.policy.status().families[0].informing == 3


def test_the_sample_is_drawn_by_hash_whatever_a_match_looks_like():
    """Half of all near matches while nothing is served, and the audited share afterwards; a seed draws them again."""
    bench = Bench(audit=0.1)
    bench.policy.attune(lambda: "e", 7)

    def drawn(score):
        return {
            number for number in range(4000)
            if bench.policy.draw(bench.request(key=b"k%d" % number), Neighbour(b"stored", score, "t")) is Source.AUDIT
        }  # fmt: skip

    before = drawn(0.72)
    again = Bench(audit=0.1)
    again.policy.attune(lambda: "e", 7)
    drawn_again = {
        number for number in range(4000)
        if again.policy.draw(again.request(key=b"k%d" % number), Neighbour(b"stored", 0.99, "t")) is Source.AUDIT
    }  # fmt: skip
    assert before == drawn_again
    assert len(before) == pytest.approx(2000, rel=0.1)
    bench.label(200)
    after = drawn(0.72)
    assert len(after) == pytest.approx(400, rel=0.2)
    assert bench.policy.explores(Source.AUDIT)
    bench.policy.failed()
    assert not bench.policy.explores(Source.AUDIT)


def test_one_rewording_that_comes_again_is_drawn_some_time():
    """What is served is not stored, so it comes again: it is drawn at the audited share, not always or never."""
    bench = Bench(audit=0.1)
    bench.policy.attune(lambda: "e", 7)
    bench.label(200)
    for key in (b"one", b"two"):
        drawn = [bench.policy.draw(bench.request(key=key), Neighbour(b"stored", 0.99, "t")) for _ in range(1000)]
        assert drawn.count(Source.AUDIT) == pytest.approx(100, rel=0.4)


def test_status_says_what_is_missing_and_what_a_budget_would_serve():
    """Labels had and needed and when, the wrong share with its interval, the origin's own; it prints as text."""
    bench = Bench(semcache.Shadow())
    for number in range(100):
        bench.policy.saw(bench.request(key=b"%d" % number), Neighbour(b"s", 0.95, "t") if number % 4 == 0 else None)
    bench.now += 86_400
    bench.label(200)
    bench.label(1, is_right=False, score=0.72)
    bench.policy.compared_with_itself(bench.request(), same=True)
    bench.policy.compared_with_itself(bench.request(), same=False)
    status = bench.policy.status()
    told = status.families[0]
    assert (status.budget, told.state, told.cut) == (None, "closed", None)
    assert (told.asked, told.near, told.labels) == (100, 25, 201)
    assert told.origin.share == 0.5
    at = {offer.budget: offer for offer in told.offers}
    assert at[0.05].cut == 0.7
    assert at[0.05].served == 0.25
    assert at[0.05].wrong.interval[1] < 0.03
    assert at[0.01].cut is None
    assert at[0.01].needed == pytest.approx(386, abs=2)
    assert at[0.01].days == pytest.approx(386 / 201, rel=0.02)
    text = str(status)
    assert "shadow: nothing near is served" in text
    assert "labels are missing, in about 1.9 days" in text
    assert "25.0% of requests served" in text


@pytest.mark.parametrize("settings", [{"max_wrong": 0}, {"max_wrong": 1.5}, {"max_wrong": "1%"}, {"max_wrong": True}])
def test_a_budget_that_is_no_share_is_refused(settings):
    """The mend is in the message."""
    with pytest.raises(semcache.ConfigurationError, match="a share between 0 and 1"):
        semcache.ErrorBudget(**settings)
    with pytest.raises(semcache.ConfigurationError, match="confidence"):
        semcache.ErrorBudget(0.01, 95)


def test_one_policy_learns_for_one_cache():
    """Two caches would mix their families and book the same labels twice."""
    bench = Bench()
    with pytest.raises(semcache.ConfigurationError, match="one for each cache"):
        bench.policy.bind(lambda: True, lambda: 0.0, 0.02, lambda *_: None)
