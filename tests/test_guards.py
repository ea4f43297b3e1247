"""Guards: what a near match must agree in, whatever its similarity."""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import semcache
from semcache.events import Event
from semcache.policy.guards import GUARDS, Guards
from semcache.policy.reading import facts_of, read
from semcache.policy.tokens import letters_of
from semcache.telemetry.logging import LoggingObserver

# Each guard: texts that it must keep apart, and texts that it must let through.
APART = {
    "numbers": [
        ("set the alarm for 6", "set the alarm for 7"),
        ("set the alarm for six", "set the alarm for seven"),
        ("what is 20 percent of 150", "what is twenty percent of one hundred and twenty"),
        ("a list of the top 5 phones", "a list of the top phones"),
        ("table for two", "table for one"),
        ("what happened in World War II", "what happened in World War III"),
        ("is the second better than this", "is the first better than this"),
        ("transfer 1,000 now", "transfer 10,000 now"),
        ("a bolt of 1.5", "a bolt of 15"),
        ("Wie viel sind zwei davon", "Wie viel sind drei davon"),
    ],
    "units": [
        ("how far is 5 km", "how far is 5 miles"),
        ("I paid $20 for it", "I paid 20 euros for it"),
        ("a timer of 10 minutes", "a timer of 10 seconds"),
        ("how many kilometers is a marathon", "how many miles is a marathon"),
    ],
    "dates": [
        ("flights on 3 May 2024", "flights on 4 May 2024"),
        ("flights in March", "flights in April"),
        ("is it open on Monday", "is it open on Tuesday"),
        ("is it open on Monday", "is it open"),
        ("the log of 2024-05-03", "the log of 2024-05-04"),
        ("which courses are there next semester", "which courses are there this semester"),
        ("Was ist am Montag", "Was ist am Dienstag"),
    ],
    "times": [
        ("wake me at 6 am", "wake me at 6 pm"),
        ("wake me at 06:30", "wake me at 18:30"),
        ("wake me at half past six", "wake me at quarter past six"),
        ("is there a class at noon", "is there a class at midnight"),
        ("what is on in the morning", "what is on in the evening"),
    ],
    "identifiers": [
        ("where is order AB-12-CD", "where is order AB-12-CE"),
        ("open https://example.org/a", "open https://example.org/b"),
        ("write to ada@example.org", "write to bob@example.org"),
        ("what changed in v1.2.3", "what changed in v1.2.4"),
        ("what does max_size do", "what does min_size do"),
    ],
    "quotes": [('what does "ship it" mean', 'what does "hold on" mean'),
        ("translate 'good day'", "translate 'so long'")],
    "negation": [
        ("can I return it", "can't I return it"),
        ("courses with an exam", "courses without an exam"),
        ("Kann ich es umtauschen", "Kann ich es nicht umtauschen"),
        ("I am able to pay", "I am unable to pay"),
        ("which days are free besides Monday", "which days are free on Monday"),
        ("rooms other than the small one", "rooms like the small one"),
    ],
    "antonyms": [
        ("how do I enable dark mode", "how do I disable dark mode"),
        ("turn the light on", "turn the light off"),
        ("increasing the limit", "decreasing the limit"),
        ("is it open before lunch", "is it open after lunch"),
        ("which is the largest lake", "which is the smallest lake"),
        ("what is 5 + 3", "what is 5 * 3"),
        ("which is the least expensive plan", "which is the most expensive plan"),
        ("which is the least expensive plan", "which plan is expensive"),
        ("the average height of a tree", "the maximum height of a tree"),
        ("log me in", "log me out"),
        ("Wie kann ich das einschalten", "Wie kann ich das ausschalten"),
    ],
    "names": [
        ("how far is Berlin from here", "how far is Munich from here"),
        ("who is the president of France", "who is the president of Chile"),
        ("do you ship to New York", "do you ship to New Jersey"),
    ],
    "questions": [("when was he born", "where was he born"), ("how many are there", "how old are they"),
        ("tell me when it begins", "tell me where it begins"), ("where's the meeting", "when's the meeting"),
        ("how many days does it take", "how many does it take"), ("how come it closed", "when did it close")],
    "order": [("convert dollars to euros", "convert euros to dollars"),
        ("is a cat faster than a dog", "is a dog faster than a cat")],
    "volatile": [("what is the weather today", "how is the weather today"), ("the latest news", "the news")],
    "language": [("how do I change my card", "как сменить карту"),
        ("How can I change my card", "Wie kann ich meine Karte wechseln")],
}  # fmt: skip
ALIKE = [
    ("set the alarm for 7", "set an alarm for seven please"),
    ("I have twenty-one", "I have 21"),
    ("three million people", "3,000,000 people"),
    ("a dozen eggs", "12 eggs"),
    ("what is the 3rd planet", "what is the third planet"),
    ("which one is the best", "what is the best"),
    ("a run of 5 km", "a run of 5 kilometers"),
    ("a timer of 60 minutes", "a timer of 1 hour"),
    ("a timer of one hour", "a timer of an hour"),
    ("a timer of half an hour", "a timer of 30 minutes"),
    ("it costs $20", "it costs 20 dollars"),
    ("a fee of 5%", "a fee of 5 percent"),
    ("a timer for 5", "a timer for 5 minutes"),
    ("3 May 2024", "May 3rd, 2024"),
    ("2024-05-03", "the 3rd of May 2024"),
    ("what may I do", "what can I do"),
    ("closed on Mondays", "is it closed on Monday"),
    ("wake me at 6 pm", "wake me at 18:00"),
    ("wake me at 6 am", "wake me at 6 in the morning"),
    ("wake me at 6:30", "wake me at half past six"),
    ("wake me at 5:30 a.m.", "wake me at five thirty am"),
    ("wake me at 7", "wake me at 7 o'clock"),
    ("course EECS 280", "course eecs280"),
    ("my order ABC-123", "my order ABC 123"),
    ("I can't log in", "I cannot log in"),
    ("they don't have it", "they do not have it"),
    ("they don\u2019t have it", "they don't have it"),
    ("it is incorrect", "it is not correct"),
    ("how do I turn it on", "how can I turn it on"),
    ("will Donald Trump win", "will Trump win"),
    ("the population of India", "the Indian population"),
    ("How To Reset My Password", "how do I reset my password"),
    ("HOW DO I RESET IT", "how do I reset it"),
    ("What does 'ship it' mean", "what does ship it mean"),
    ("how tall is Mount Everest", "how high is Mount Everest"),
    ("what does it cost now", "what does it cost currently"),
    ("Wie kann ich mein Passwort zurücksetzen", "Wie setze ich mein Kennwort zurück"),
    ("café near me", "a café near me"),
    ("does it ship to the U.S?", "does it ship to the US?"),
    ("a degree like an M.S in physics", "a degree like an MS in physics"),
    ('who sang ""Blue Moon"" first? Is ""Blue Moon"" old', "who sang Blue Moon at first and is Blue Moon old"),
    ("how much do I sleep in one day", "how much do I sleep per day"),
    ("how many days does it take", "how long does it take"),
    ("how much longer does it take", "how long does it still take"),
    ("there is a fee when I pay", "why is there a fee if I pay"),
    ("which is the cheapest plan", "which is the least expensive plan"),
    ("which plans are less difficult", "which plans are easier"),
    ("I am not able to pay", "I am unable to pay"),
    ("I can't figure out why it is slow", "in the end I can't say why it is slow"),
    ("Help Me! I lost my key", "please help, I lost my key"),
    ("send it to me ASAP", "send it to me"),
]


@pytest.mark.parametrize(("guard", "one", "two"), [(name, *pair) for name, pairs in APART.items() for pair in pairs])
def test_guard_keeps_texts_apart(guard, one, two):
    """Texts that differ in what a guard knows are refused by it, alone too, and none but it where it is off."""
    assert Guards([guard]).check(one, two).guard == guard
    assert Guards([guard]).check(two, one).guard == guard
    assert Guards().check(one, two) is not None


@pytest.mark.parametrize(("one", "two"), ALIKE)
def test_guards_let_the_same_in_other_words_through(one, two):
    """No guard refuses what says the same numbers, times and names in other words."""
    assert Guards().check(one, two) is None
    assert Guards().check(two, one) is None


def test_every_guard_is_tried():
    """The table above has texts for each."""
    assert set(APART) == set(GUARDS)


def test_reason_names_what_differs():
    """People see what it was, in the order of the texts."""
    assert Guards().check("the alarm for 6", "the alarm for seven").reason == "guard: numbers differ (6 / 7)"
    assert Guards().check("the 5 km run", "the 5 mile run").reason == "guard: units differ (5 km / 5 mile)"


@pytest.mark.parametrize(
    "text", ["что это", "东京的天气", "¿Cómo cambio la clave de mi tarjeta?", "Comment puis-je changer ma carte"]
)
def test_text_in_a_language_that_no_guard_reads_is_exact_only(text):
    """What the guards cannot read they cannot vouch for (law 12)."""
    refusal = Guards().check(text, text + "!")
    assert (refusal.guard, refusal.reason.partition(":")[0]) == ("language", "exact only")


def test_text_with_a_volatile_word_is_exact_only():
    """Two who say "today" may mean two days."""
    assert Guards().check("news of today", "today's news").reason.startswith("exact only: volatile words (today")
    assert Guards().check("news of today", "news of today") is None


WORDS = st.sampled_from([
    "set", "the", "alarm", "for", "6", "seven", "am", "5", "km", "May", "Monday", "not", "don't", "on",
    "off", "Berlin", "from", "to",
    "ABC-123", "who", "how", "many", "half", "past", "one", "hundred", "and", "$", "'", '"quoted"', "NASA",
    "18:30", "3.5", "today",
    "at", "morning", "next", "week", "+", "Wie", "nicht", "zwei", "halb", "quarter", "second", "a",
    "thousand", "2024-05-03", "%",
])  # fmt: skip
TEXTS = st.lists(WORDS, max_size=14).map(" ".join)
ANY = st.one_of(TEXTS, st.text(max_size=200))


@given(ANY, ANY)
@settings(max_examples=150, deadline=None)
def test_guards_are_symmetric_and_end(one, two):
    """Whichever text was asked first, the answer is the same, for any text at all."""
    here, there = Guards().check(one, two), Guards().check(two, one)
    assert (here is None) == (there is None)
    for name in GUARDS:
        here, there = Guards([name]).check(one, two), Guards([name]).check(two, one)
        assert (here is None) == (there is None), name


@given(TEXTS)
@settings(max_examples=150, deadline=None)
def test_another_spelling_of_a_text_is_no_conflict(text):
    """Case, spaces and punctuation at the ends make no other text; what may never be served nearly is left out."""
    guards = Guards([name for name in GUARDS if name not in ("volatile", "language")])
    for other in (
        text.lower(),
        text.upper(),
        f"  {text}",
        text.replace(" ", "   "),
        f"{text} ?",
        f"{text}!!",
        f"{text}.",
    ):
        refusal = guards.check(text, other)
        assert refusal is None, (other, refusal)


@pytest.mark.parametrize(
    "piece", ["a", "1", "a.", "a-", "a_", "1,", "'", '"', "@", "1:", "one ", "hundred and ", "at 6 ", "http://", "ab1-"]
)
def test_long_texts_take_linear_time(piece):
    """No text, however made, costs more than its length: one that costs its square makes this test hang."""
    assert facts_of(piece * 4_000).letters == letters_of(piece) * 4_000


def test_text_too_long_to_compare_in_time_is_exact_only():
    """Law 10: reading takes time with each character, and a caller waits for it."""
    told = "where is my order " * 3_000
    refusal = Guards().check(told, told + "please")
    assert (refusal.guard, refusal.reason) == ("language", "exact only: the guards read at most 50,000 characters")


def test_each_text_is_read_once():
    """A lookup asks of one text beside up to four neighbours, and neighbours come again."""
    asked = []

    def facts(text):
        asked.append(text)
        return read(text)

    guards = Guards(facts=cache(facts))
    assert [guards.refuses("6 of them", other) for other in ("7 of them", "8 of them", "six of them")] == [
        "numbers", "numbers", None,
    ]  # fmt: skip
    assert asked == ["6 of them", "7 of them", "8 of them", "six of them"]
    assert facts_of("9 of them") is facts_of("9 of them")


def test_memory_of_facts_is_bounded_by_letters():
    """Long texts take the place of many short ones, and the longest are not kept."""
    facts_of("first of them")
    for number in range(12):
        facts_of(f"{number} " + f"{'a' * 60} " * 600)
    assert facts_of.cache.currsize <= facts_of.cache.maxsize
    assert not any(facts.letters == "firstofthem" for facts in facts_of.cache.values())


def test_one_job_of_many_texts_remembers_them_all():
    """Who compares each text with many others reads each once, however many there are."""
    texts = [f"where is order {number}" for number in range(3_600)]
    guards = Guards(["numbers"]).unbounded()
    assert repr(guards) == "Guards(['numbers'])"
    early = guards.facts(texts[1])
    assert {guards.refuses(texts[0], other) for other in texts[1:]} == {"numbers"}
    assert guards.facts(texts[1]) is early
    assert guards.refuses(texts[0], texts[0]) is None


def test_guards_judge_what_any_policy_would_serve():
    """A policy of one's own has guards by asking them of its decision; what it does not serve stays as it decided."""
    near = semcache.Neighbour(b"k", 0.97, "the alarm for 7")
    served = semcache.Decision(semcache.Verdict.REUSE, "my own", 0.97, 0.9)
    refused = Guards().over(served, "the alarm for 6", near)
    assert (refused.verdict, refused.guard, refused.cut) == (semcache.Verdict.REJECT, "numbers", 0.9)
    assert Guards().over(served, "the alarm for seven", near) is served
    for verdict in (semcache.Verdict.REJECT, semcache.Verdict.EXPLORE):
        decided = semcache.Decision(verdict, "my own", 0.97)
        assert Guards().over(decided, "the alarm for 6", near) is decided


# In a cache


def ask(cache, text):
    return cache.get_or_load(cache.request("f", text=text), lambda: f"answer to {text}")


@pytest.mark.semantic
def test_near_match_that_a_guard_refuses_is_not_served(open_near):
    """On by default: the embedder sees one text, the guard two; the reason is told and counted."""
    cache = open_near(policy=semcache.Threshold(0.9))
    ask(cache, "set the alarm for 6")
    cache.flush()
    assert ask(cache, "set the alarm for seven") == "answer to set the alarm for seven"
    event = semcache.last()
    assert (event.reason, event.decision.guard) == ("guard: numbers differ (7 / 6)", "numbers")
    assert event.decision.verdict is semcache.Verdict.REJECT
    assert cache.stats().not_served == {"guard: numbers": 1}
    told = cache.explain(cache.request("f", text="set the alarm for 9"))
    assert "policy: reject, guard: numbers differ (9 / " in str(told)


@pytest.mark.semantic
def test_next_neighbour_is_tried_behind_one_that_a_guard_refuses(open_near):
    """The nearest may be about another hour, the next one about this."""
    cache = open_near({"set an alarm for 6": 10}, policy=semcache.Threshold(0.9))
    for text in ("set the alarm for 7", "set an alarm for 6"):
        ask(cache, text)
        cache.flush()
    assert ask(cache, "set the alarm for six") == "answer to set an alarm for 6"
    assert semcache.last().decision.verdict is semcache.Verdict.REUSE


@pytest.mark.semantic
@pytest.mark.parametrize("guards", [None, [], ["dates", "names"]])
def test_guards_can_be_switched_off(open_near, guards):
    """Who names others, or none, is served what the rest would refuse."""
    cache = open_near(policy=semcache.Threshold(0.9, guards=guards))
    ask(cache, "set the alarm for 6")
    cache.flush()
    assert ask(cache, "set the alarm for seven") == "answer to set the alarm for 6"


def test_threshold_says_which_guards_are_on():
    """All of them are not worth a word."""
    assert repr(semcache.Threshold(0.9)) == "Threshold(0.9)"
    assert repr(semcache.Threshold(0.9, guards=None)) == "Threshold(0.9, guards=None)"
    assert repr(semcache.Threshold(0.9, guards=["names", "dates"])) == "Threshold(0.9, guards=['dates', 'names'])"


def test_unknown_guard_is_refused():
    """A typing error would switch guards off."""
    with pytest.raises(semcache.ConfigurationError, match="numbers"):
        semcache.Threshold(0.9, guards=["number"])


@pytest.mark.parametrize("texts", [False, True])
def test_log_quotes_what_a_guard_read_only_where_texts_are_asked_for(caplog, texts):
    """A guard's reason holds words of both texts; a log that is to hold none names the guard."""
    near = semcache.Neighbour(b"k", 1.0, "ask secretary Smith")
    decision = semcache.Threshold(0.9).decide("ask secretary Jones", near)
    with caplog.at_level("INFO", "semcache.events"):
        LoggingObserver(texts=texts)(Event("miss", decision=decision, reason=decision.reason))
    told = caplog.records[0].semcache_reason
    assert told == ("guard: names differ (jones / smith)" if texts else "guard: names")
    assert ("smith" in caplog.text) is texts
