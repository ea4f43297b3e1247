"""The examples run as they stand, and print what they show."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "examples"

PRINTED = {
    "functions.py": """\
  (asking the model: Do you ship to Austria?)
Do you ship to Austria? Yes. [en]
Do you ship to Austria? Yes. [en]
  (asking the model: Do you ship to Austria?)
Do you ship to Austria? Yes. [de]
CacheInfo(hits=1, misses=2, bypasses=0)
  (asking the model: Do you ship to Austria?)
  (asking the model: Do you ship to Austria?)
['hit', 'miss']
memory
""",
    "async_functions.py": """\
  (asking the model: do you ship to austria?)
50 {'DO YOU SHIP TO AUSTRIA?'}
1 load, 49 shared it
DO YOU SHIP TO AUSTRIA?
hit memory
""",
    "embeddings.py": """\
  (computing ['a cab', 'abba'])
  (computing ['bccb'])
(4, 3) float32
  (computing ['aaa'])
[[2.0, 2.0, 0.0], [3.0, 0.0, 0.0]]
[3.0, 0.0, 0.0]
CacheInfo(hits=2, misses=4, bypasses=0)
  (computing ['a', 'b'])
  (computing ['c'])
  (computing ['ab', 'abc'])
[[4.0], [6.0]] [[6.0]]
""",
    "generators.py": """\
  (the model begins)
we
  (the model begins)
  (the model has ended)
['we', 'ship', 'to', 'Austria']
['we', 'ship', 'to', 'Austria']
CacheInfo(hits=1, misses=2, bypasses=0)
  (the model begins)
[['we', 'ship'], ['we', 'ship']]
CacheInfo(hits=1, misses=1, bypasses=0)
""",
    "methods.py": """\
small: Do you ship to Austria?
small: Do you ship to Austria?
large: Do you ship to Austria?
[1, 0, 1]
CacheInfo(hits=1, misses=2, bypasses=0)
['gpt-small', 'gpt-large'] ['gpt-small', 'gpt-large']
""",
    "retrieval.py": """\
  (searching what staff may read: shipping to Austria, 2)
['austria', 'prices']
['austria']
  (searching what public may read: shipping to Austria, 1)
['austria']
1 dropped
  (searching what staff may read: shipping to Austria, 2)
['austria', 'prices']
CacheInfo(hits=1, misses=3, bypasses=0)
""",
    "openai_client.py": """\
Answer to: Do you ship to Austria? (miss)
Answer to: Do you ship to Austria? (hit memory)
streamed: Answer to: Do you ship to Austria? (hit memory)
async: Answer to: Do you ship to Austria? (hit memory)
gathered: 3 answers (hit memory)
the model was called 1 time
saved: 96 + 48 tokens in 6 hits
""",
    "anthropic_client.py": """\
Answer to: Do you ship to Austria? (miss)
{'text': 'Answer to: Do you ship to Austria?', 'type': 'text'} (hit memory)
['miss', 'hit']
the model was called 2 times
""",
    "rag.py": """\
Without the cache, one stage after another:
stage calls wall s hits misses loads load s tokens
preprocess 3 SECONDS 0 0 9 SECONDS 0
by words 3 SECONDS 0 0 3 SECONDS 0
by meaning 3 SECONDS 0 0 3 SECONDS 0
embed 3 SECONDS 0 0 21 SECONDS 0
prompt 3 SECONDS 0 0 0 SECONDS 0
generate 3 SECONDS 0 0 3 SECONDS 73
- rag.preprocess was loaded 9 times in preprocess where 3 would do: mode="off" looks nothing up.
- rag.embed was loaded 18 times in embed where 6 would do: mode="off" looks nothing up.
- by meaning and by words do not need each other, and ran one after the other: run them at once, as by asyncio.gather, \
and save up to SECONDS s.

With the cache, what is independent at once, the first time:
stage calls wall s hits misses loads load s tokens
preprocess 3 SECONDS 6 3 3 SECONDS 0
by words 3 SECONDS 0 3 3 SECONDS 0
by meaning 3 SECONDS 0 3 3 SECONDS 0
embed 3 SECONDS 12 9 9 SECONDS 0
prompt 3 SECONDS 0 0 0 SECONDS 0
generate 3 SECONDS 0 3 3 SECONDS 73

And from then on:
stage calls wall s hits misses loads load s tokens
preprocess 3 SECONDS 9 0 0 SECONDS 0
by words 3 SECONDS 3 0 0 SECONDS 0
by meaning 3 SECONDS 3 0 0 SECONDS 0
prompt 3 SECONDS 0 0 0 SECONDS 0
generate 3 SECONDS 3 0 0 SECONDS 0

The prices have changed: 3 dropped, the searches and the answer made of them
What does shipping cost? miss
When are you open? hit
How do I return a parcel? hit
""",
    "semantic.py": """\
How long does shipping to Austria take? [en]
  an answer to: How long does shipping to Austria take? [en]
  miss
How long does the shipping to Austria take? [en]
  an answer to: How long does shipping to Austria take? [en]
  hit semantic at {similarity}
How long does the shipping to Austria take? [de]
  an answer to: How long does the shipping to Austria take? [de]
  miss
Where is my invoice? [en]
  an answer to: Where is my invoice? [en]
  miss
""",
}
CASES = [
    *(pytest.param(name, [], id=name) for name in PRINTED if name != "semantic.py"),
    pytest.param("semantic.py", [], id="semantic.py", marks=pytest.mark.semantic),
    pytest.param("semantic.py", ["--model", "all-MiniLM-L6-v2"], id="semantic.py-model", marks=pytest.mark.semantic),
]


def test_every_example_is_run():
    """An example that nobody runs is wrong before long."""
    elsewhere = {"serve_demo.py"}  # tests/sidecar/test_serve_demo.py: it goes on until it is ended
    assert sorted(PRINTED) == sorted({path.name for path in FOLDER.glob("*.py")} - elsewhere)


@pytest.mark.parametrize(("name", "arguments"), CASES)
def test_example_prints_what_it_shows(name, arguments):
    """Each runs in a process of its own, warnings being errors."""
    done = subprocess.run(
        [sys.executable, "-W", "error", FOLDER / name, *arguments],
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    printed = done.stdout
    if name == "rag.py":  # times are whatever they are, and so are the widths of their columns
        printed = re.sub(" +", " ", re.sub(r"\d+\.\d{3}\b", "SECONDS", printed))
    assert printed == PRINTED[name].replace("{similarity}", "0.99" if arguments else "0.94")
