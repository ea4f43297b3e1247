"""A cached function keeps its parameters and its return type, for mypy; pyright is run on the examples."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[2]

SOURCE = """
    from collections.abc import AsyncIterator, Generator
    from functools import partial
    from typing import reveal_type

    import semcache

    cache = semcache.Cache()

    @semcache.cached
    def bare(question: str, locale: str = "en") -> int:
        return 1

    @semcache.cached(cache, ttl="5m", text="question")
    def plain(question: str, *, limit: int = 3) -> int:
        return 1

    @semcache.cached(cache)
    async def aplain(question: str) -> list[str]:
        return []

    @semcache.cached()
    def items(question: str) -> Generator[str, None, int]:
        yield question
        return 1

    @semcache.cached(cache)
    async def aitems(question: str) -> AsyncIterator[bytes]:
        yield b""

    class Model:
        @semcache.cached(cache)
        def ask(self, question: str) -> float:
            return 1.0

        @semcache.cached(cache)
        async def aask(self, question: str) -> float:
            return 1.0

        @classmethod
        @semcache.cached(cache)
        def make(cls, name: str) -> bool:
            return True

        @semcache.cached(cache)
        @staticmethod
        def check(name: str) -> bytes:
            return b""

    class Derived(Model): ...

    class Client:
        base_url: str = ""

        def __enter__(self) -> "Client":
            return self

    class AsyncClient:
        base_url: str = ""

        async def __aenter__(self) -> "AsyncClient":
            return self

    async def main(model: Model) -> None:
        reveal_type(bare("q", locale="de"))  # int
        reveal_type(plain("q", limit=1))  # int
        reveal_type(await aplain("q"))  # list[str]
        reveal_type(items("q"))  # typing.Generator[str, None, int]
        reveal_type(aitems("q"))  # typing.AsyncIterator[bytes]
        reveal_type(model.ask("q"))  # float
        reveal_type(Derived().ask(question="q"))  # float
        reveal_type(Model.ask(model, "q"))  # float
        reveal_type(await model.aask("q"))  # float
        reveal_type(Derived.make("n"))  # bool
        reveal_type(model.make("n"))  # bool
        reveal_type(Model.check("n"))  # bytes
        reveal_type(model.check("n"))  # bytes
        reveal_type(plain.__wrapped__("q"))  # int
        reveal_type(plain.cache_info().hits)  # int
        reveal_type(plain.invalidate("q", limit=2))  # int
        reveal_type(Model.ask.explain(model, "q"))  # semcache.explain.Explanation
        reveal_type(semcache.cached(cache)(partial(bare.__wrapped__, "q"))())  # int
        reveal_type(semcache.gather(Client(), [{"model": "m"}], max_concurrency=2))  # list[Any]
        reveal_type(await semcache.gather(AsyncClient(), [{"model": "m"}], return_errors=True))  # list[Any]

        semcache.gather(3, [])  # error: call-overload
        semcache.gather(Client(), ["a"])  # error: list-item
        semcache.gather(Client(), [], concurrency=2)  # error: call-overload
        bare(1)  # error: arg-type
        bare()  # error: call-arg
        plain("q", 3)  # error: call-arg
        plain("q", other=3)  # error: call-arg
        model.ask(3)  # error: arg-type
        model.ask()  # error: call-arg
        Model.make(3)  # error: arg-type
        model.check(3)  # error: arg-type
        plain.invalidate(3)  # error: arg-type
        plain.cache_infos()  # error: attr-defined
        (await aplain("q")).upper()  # error: attr-defined
        semcache.cached(cache, tll="5m")  # error: call-overload
        semcache.cached(cache, text=3)  # error: call-overload
        semcache.cached(3)  # error: call-overload
"""

# What is below our public names is not looked at here, least of all torch.
SETTINGS = """
    [mypy]
    strict = True
    follow_imports = silent

    [mypy-cachetools.*,faiss.*,msgpack.*,numpy.*,pydantic.*,sentence_transformers.*,torch.*,transformers.*]
    follow_imports = skip
    ignore_missing_imports = True
"""


def test_types_are_kept_and_wrong_arguments_are_errors(tmp_path):
    """What mypy --strict says of each line is what the line's comment says, and nothing else."""
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent(SOURCE), encoding="utf-8")
    (tmp_path / "mypy.ini").write_text(textwrap.dedent(SETTINGS), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", tmp_path / "mypy.ini", "--cache-dir", tmp_path, program],
        cwd=ROOT, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    said = {}
    for number, kind, text in re.findall(r"program\.py:(\d+): (error|note): (.*)", done.stdout):
        revealed = re.fullmatch(r'Revealed type is "(.*)"', text)
        code = re.search(r"\[([a-z-]+)\]$", text)
        if kind == "error" or revealed:
            said.setdefault(int(number), revealed[1] if revealed else f"error: {code[1]}")
    lines = program.read_text(encoding="utf-8").splitlines()
    promised = {number: line.partition("  # ")[2] for number, line in enumerate(lines, 1) if "  # " in line}
    plain = {number: text.replace("builtins.", "") for number, text in said.items()}
    assert plain == promised, done.stdout + done.stderr
