"""Streams of what stands in a store, read by several at once: each is given all of it, and its own."""

from __future__ import annotations

import threading

import pytest
from dialects import ASKED, WAYS, Asking


@pytest.mark.parametrize("way", WAYS)
def test_readers_of_a_stored_answer_are_each_given_all_of_it(models, open_cache, tmp_path, way):
    """Whoever reads along while the first still looks into the store reads the same, to the end."""
    cache = open_cache(memory=0, disk=tmp_path / "answers.db")
    asking = Asking(way, is_async=False)
    client = asking.cached(models, cache)
    texts = [f"{ASKED} {number}" for number in range(6)]
    for number, text in enumerate(texts):  # some were streamed, some were not
        asking.read(client, text, usage=True) if number % 2 else asking.ask(client, text)
    cache.flush()
    calls, barrier, read = models.calls, threading.Barrier(5), []

    def work():
        for text in texts * 2:
            barrier.wait(30)
            usage = {"stream_options": {"include_usage": True}} if way == "openai" else {}
            stream = asking.create(client, text, stream=True, **usage)
            try:
                read.append((text, asking.streamed(list(stream))))
            except Exception as error:  # noqa: BLE001 - whatever it is, the reader was not given his answer
                read.append((text, repr(error)))

    threads = [threading.Thread(target=work) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    asking.close()
    assert len(read) == 60
    assert {(text, said) for text, said in read if said != f"Answer to: {text}"} == set()
    assert models.calls == calls
