"""The sidecar: one process with a cache, in front of the servers of many programs (`semcache serve`).

`settings` says how it runs, `credentials` who asks, `wishes` what a request's headers ask of the cache; `endpoint` and
`call` look calls up, as cached clients do, with the same dialects; `upstream` asks the server behind; `proxy` is the
ASGI application over them, and `serve` runs it.
"""
