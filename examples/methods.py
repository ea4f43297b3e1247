"""Methods: an object enters the key by what it says of itself: `python examples/methods.py`."""

from dataclasses import dataclass

import semcache

cache = semcache.Cache()


@dataclass
class Assistant:
    """A model with its prompt."""

    model: str
    prompt: str
    calls: int = 0

    def __semcache_key__(self) -> tuple[str, str]:
        """Return what the answers depend on; `calls` is not among it."""
        return self.model, self.prompt

    @semcache.cached(cache)
    def answer(self, question: str) -> str:
        self.calls += 1
        return f"{self.model}: {question}"

    @classmethod
    @semcache.cached(cache)
    def models(cls, family: str) -> list[str]:
        return [f"{family}-small", f"{family}-large"]


semcache.check(Assistant)  # says at once if the key were missing


def main() -> None:
    one = Assistant("small", "Be kind.")
    same = Assistant("small", "Be kind.")
    other = Assistant("large", "Be kind.")
    for assistant in (one, same, other):
        print(assistant.answer("Do you ship to Austria?"))
    print([assistant.calls for assistant in (one, same, other)])
    print(Assistant.answer.cache_info())
    print(Assistant.models("gpt"), Assistant.models(family="gpt"))


if __name__ == "__main__":
    main()
