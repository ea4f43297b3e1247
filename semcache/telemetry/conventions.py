"""What spans and their attributes are called: one version of OpenTelemetry's semantic conventions, and our own names.

The conventions for generative AI are in development, and rename things: here alone a newer version is taken over.
"""

from __future__ import annotations

VERSION = "1.37.0"
SCHEMA_URL = f"https://opentelemetry.io/schemas/{VERSION}"

# Of the conventions for generative AI.
OPERATION = "gen_ai.operation.name"
PROVIDER = "gen_ai.provider.name"
REQUEST_MODEL = "gen_ai.request.model"
RESPONSE_ID = "gen_ai.response.id"
INPUT_TOKENS = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS = "gen_ai.usage.output_tokens"

# Of those for HTTP, servers and errors, which are stable.
METHOD = "http.request.method"
ROUTE = "http.route"
STATUS = "http.response.status_code"
URL_PATH = "url.path"
URL_SCHEME = "url.scheme"
SERVER_ADDRESS = "server.address"
SERVER_PORT = "server.port"
ERROR_TYPE = "error.type"

# Our own: spans `semcache.lookup`, `semcache.refresh` and one for each stage, with attributes of the same beginning.
PREFIX = "semcache."

# Operation and provider of the calls that are known, by the names that lookups of theirs have.
CALLS = {
    "openai.chat.completions": ("chat", "openai"),
    "openai.responses": ("chat", "openai"),
    "openai.embeddings": ("embeddings", "openai"),
    "anthropic.messages": ("chat", "anthropic"),
}
