"""A function whose calls are answered from the cache: `python examples/functions.py`."""

import semcache

cache = semcache.Cache(memory="64MB")


@semcache.cached(cache, ttl="10m", when=bool)
def answer(question: str, locale: str = "en") -> str:
    print(f"  (asking the model: {question})")
    return f"{question} Yes. [{locale}]"


def main() -> None:
    print(answer("Do you ship to Austria?"))
    print(answer("Do you ship to Austria?", "en"))
    print(answer(question="Do you ship to Austria?", locale="de"))
    print(answer.cache_info())

    with semcache.context(mode="refresh"):
        answer("Do you ship to Austria?")
    answer.invalidate("Do you ship to Austria?", "de")
    with semcache.trace() as traced:
        answer("Do you ship to Austria?")
        answer("Do you ship to Austria?", "de")
    print([event.kind for event in traced.lookups])
    print(answer.explain("Do you ship to Austria?").tier)


if __name__ == "__main__":
    main()
