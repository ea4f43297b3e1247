"""The examples run as they stand, and print what they show."""

from __future__ import annotations

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
    assert sorted(PRINTED) == sorted(path.name for path in FOLDER.glob("*.py"))


@pytest.mark.parametrize(("name", "arguments"), CASES)
def test_example_prints_what_it_shows(name, arguments):
    """Each runs in a process of its own, warnings being errors."""
    done = subprocess.run(
        [sys.executable, "-W", "error", FOLDER / name, *arguments],
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == PRINTED[name].replace("{similarity}", "0.99" if arguments else "0.94")
