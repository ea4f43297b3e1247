"""A sidecar in the process of its test, and the words that calls are made in."""

from __future__ import annotations

import asyncio
import json
import threading

import httpx
from instruments import GUARD

from semcache.sidecar.serve import Sidecar

PATHS = {"openai": "/v1/chat/completions", "openai-responses": "/v1/responses", "anthropic": "/v1/messages"}


class Running:
    """A sidecar in a thread of its own, and a client of it."""

    def __init__(self, settings, cache):
        self.cache = cache
        self._sidecar = Sidecar(settings, cache)
        self._sidecar.listen()
        self.url = self._sidecar.url
        listening = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, args=[listening.set], daemon=True)
        self._thread.start()
        assert listening.wait(GUARD)
        self.http = httpx.Client(base_url=self.url, timeout=GUARD, verify=False)

    @property
    def programs(self):
        """What answers programs with caches of their own."""
        return self._sidecar.programs

    @property
    def counts(self):
        """What it counts beside its cache."""
        return self._sidecar._health.counts

    @property
    def openai_url(self):
        """The `base_url` of an OpenAI client, as of the stand-in."""
        return f"{self.url}/v1"

    @property
    def anthropic_url(self):
        return self.url

    def _run(self, say):
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._sidecar.run(say))
        self._loop.close()

    def end(self):
        """Take no more calls, as a signal has it."""
        self._loop.call_soon_threadsafe(self._sidecar.end)

    def renew(self, read):
        """Take settings anew, as SIGHUP has it."""
        self._loop.call_soon_threadsafe(self._sidecar.renew, read)

    def close(self):
        self.http.close()
        if self._thread.is_alive():
            self.end()
        self._thread.join(GUARD)
        self._sidecar.close()
        assert not self._thread.is_alive()

    def chat(self, text="Do you ship?", *, key="sk-1", headers=None, **parameters):
        """Post a chat completion, as curl would."""
        body = {"model": "m", "messages": [{"role": "user", "content": text}], **parameters}
        return self.post(PATHS["openai"], body, key=key, headers=headers)

    def post(self, path, body, *, key="sk-1", headers=None):
        """Post JSON, or bytes as they are."""
        told = body if isinstance(body, bytes) else json.dumps(body)
        own = {"content-type": "application/json"} | ({} if key is None else {"authorization": f"Bearer {key}"})
        return self.http.post(path, content=told, headers=own | (headers or {}))


def told(response):
    """Return the word on how a call was answered."""
    return response.headers["x-semcache"]
