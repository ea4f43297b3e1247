"""The command `semcache`: its output, its errors in one line, its exit status."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import semcache
from semcache.cli import main

SUPPORT = Path(__file__).parent.parent / "examples" / "traffic" / "support.jsonl"


def line(text, ts=0, **fields):
    body = {"model": "m", "messages": [{"role": "user", "content": text}]}
    return json.dumps({"ts": ts, "kind": "llm", "request": body, **fields}) + "\n"


@pytest.fixture
def traffic(tmp_path):
    path = tmp_path / "traffic.jsonl"
    path.write_text(line("a", 0, answer_id="x") + "{\n" + line("a", 1, answer_id="x"), encoding="utf-8")
    return path


def test_replay_prints_a_report(traffic, capsys):
    """The report goes to stdout, progress to stderr."""
    assert main(["replay", str(traffic), "--no-semantic"]) == 0
    out, err = capsys.readouterr()
    assert "Replay of traffic.jsonl" in out
    assert "Exact matches answered 50.0% of the requests" in out
    assert err.splitlines() == ["reading ...", "replaying 2 ..."]


def test_quiet_replay_says_nothing_on_stderr(traffic, capsys):
    """--quiet shows no progress."""
    assert main(["replay", str(traffic), "--no-semantic", "--quiet"]) == 0
    assert capsys.readouterr().err == ""


def test_json_file_holds_the_figures(traffic, tmp_path, capsys):
    """--json writes the figures beside the report."""
    assert main(["replay", str(traffic), "--no-semantic", "--json", str(tmp_path / "out.json")]) == 0
    told = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert (told["requests"], told["hits"], told["skipped_lines"]) == (2, {"memory": 1, "disk": 0}, 1)
    assert "Replay of" in capsys.readouterr().out


def test_json_to_stdout_is_nothing_but_json(traffic, capsys):
    """--json - can be piped into another program."""
    assert main(["replay", str(traffic), "--no-semantic", "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["requests"] == 2


def test_options_reach_the_replay(tmp_path, capsys):
    """ttl, time scale, memory and limit are what was typed."""
    path = tmp_path / "t.jsonl"
    path.write_text("".join(line("a", ts) for ts in (0, 100, 200, 300)), encoding="utf-8")

    def hits(*options):
        assert main(["replay", str(path), "--no-semantic", "--quiet", "--json", "-", *options]) == 0
        return json.loads(capsys.readouterr().out)["hits"]

    assert hits("--ttl", "memory=10m") == {"memory": 3, "disk": 0}
    assert hits("--ttl", "memory=90s") == {"memory": 0, "disk": 3}
    assert hits("--ttl", "memory=90s", "--ttl", "disk=250s") == {"memory": 0, "disk": 2}
    assert hits("--time-scale", "10") == {"memory": 0, "disk": 3}
    assert hits("--limit", "2") == {"memory": 1, "disk": 0}
    assert hits("--memory", "0") == {"disk": 3}
    assert hits("--live", "--concurrency", "2")["disk"] == 0


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["learn"], "invalid choice: 'learn'"),
        (["replay"], "the following arguments are required: TRAFFIC.jsonl"),
        (["replay", "FILE", "--policy", "nearest"], 'a policy is "shadow", "threshold:0.92" or "budget:0.01"'),
        (["replay", "FILE", "--policy", "threshold:high"], 'a policy is "shadow", "threshold:0.92" or "budget:0.01"'),
        (["replay", "FILE", "--policy", "threshold:2"], "a threshold is a cosine"),
        (["replay", "FILE", "--ttl", "5m"], "expected TIER=TIME"),
        (["replay", "FILE", "--ttl", "redis=5m"], "expected TIER=TIME"),
        (["replay", "FILE", "--ttl", "memory=soon"], "ttl of memory must be a positive number of seconds"),
        (["replay", "FILE", "--ttl", "memory=-1"], "ttl of memory"),
        (["replay", "FILE", "--memory", "lots"], "--memory must be a number of bytes"),
        (["replay", "FILE", "--limit", "0"], "expected a whole number, at least 1"),
        (["replay", "FILE", "--time-scale", "-1"], "expected a number over 0"),
        (["replay", "FILE", "--time-scale", "nan"], "expected a number over 0"),
        (["replay", "FILE", "--concurrency", "4"], "--concurrency and --origin-scale are for --live"),
        (["replay", "FILE", "--origin-scale", "1"], "--concurrency and --origin-scale are for --live"),
        (["replay", "FILE", "--live", "--origin-scale", "-1"], "expected a number, at least 0"),
        (["replay", "FILE", "--live", "--time-scale", "2"], "--time-scale is not for --live"),
        (["replay", "FILE", "--no-semantic", "--policy", "threshold:0.9"], "goes with neither --policy nor"),
        (["replay", "FILE", "--no-semantic", "--json", "/no/such/folder/out.json"], "no folder to write that file in"),
        (["replay", "FILE", "--speed", "9"], "unrecognized arguments: --speed 9"),
    ],
)
def test_wrong_use_is_one_line_and_status_2(options, told, traffic, capsys):
    """What is wrong with a command is said in one line, before anything is replayed."""
    options = [str(traffic) if option == "FILE" else option for option in options]
    try:
        status = main(options)
    except SystemExit as stopped:
        status = stopped.code
    out, err = capsys.readouterr()
    assert (status, out) == (2, "")
    assert told in err
    assert err.startswith("semcache")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("content", "options", "told"),
    [
        (None, [], "No such file or directory"),
        ("", [], "no request in it"),
        ("{\n", [], "no request in it; the first line: not JSON"),
        (line("a") + "{\n", ["--strict"], "line 2: not JSON"),
    ],
)
def test_recording_that_cannot_be_replayed_is_one_line_and_status_1(content, options, told, tmp_path, capsys):
    """A recording that is not there, or holds nothing, is named."""
    path = tmp_path / "t.jsonl"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    assert main(["replay", str(path), "--no-semantic", "--quiet", *options]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"semcache: {path}: ")
    assert told in err
    assert err.count("\n") == 1


def test_missing_extra_is_told_with_its_command(traffic, monkeypatch, capsys):
    """Without the extra `semantic` the command that installs it is told, and how to do without."""
    monkeypatch.setattr("semcache.semantic.embedder.find_spec", lambda _name: None)
    assert main(["replay", str(traffic)]) == 2
    err = capsys.readouterr().err
    assert "pip install 'tiered-semcache[semantic]'" in err
    assert "--no-semantic" in err


@pytest.mark.semantic
def test_model_that_is_not_there_is_one_line(traffic, capsys):
    """An embedder that cannot be had is wrong use, told in one line."""
    assert main(["replay", str(traffic), "--quiet", "--embedder", "./no/such/model"]) == 2
    err = capsys.readouterr().err
    assert "there is no such folder" in err
    assert err.count("\n") == 1


def test_version_is_the_packages(capsys):
    """`semcache --version` says which semcache this is."""
    with pytest.raises(SystemExit) as stopped:
        main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out == f"semcache {semcache.__version__}\n"


def test_module_runs_as_the_command():
    """`python -m semcache` is `semcache`."""
    done = subprocess.run([sys.executable, "-m", "semcache", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"semcache {semcache.__version__}\n"


def test_command_that_replays_nothing_loads_nothing_heavy():
    """Law 13: help and version need no torch, faiss or numpy."""
    code = (
        "import sys, semcache.cli\n"
        "print(sorted({'torch', 'faiss', 'numpy', 'sentence_transformers', 'rich'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_reader_who_leaves_early_leaves_no_traceback(traffic):
    """`semcache replay ... | head -1` ends quietly."""
    command = [sys.executable, "-m", "semcache", "replay", str(traffic), "--no-semantic", "--quiet"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        running.stdout.close()
        assert running.stderr.read() == b""
    assert running.returncode == 141


def test_interrupted_replay_stops_in_one_line(tmp_path):
    """Ctrl-C ends a replay at once, without a traceback, and leaves no file behind."""
    path = tmp_path / "t.jsonl"
    path.write_text(line("a", latency_ms=600_000), encoding="utf-8")
    options = ["replay", str(path), "--no-semantic", "--live", "--origin-scale", "1"]
    # A process started in the background may ignore SIGINT; what a terminal starts does not.
    code = f"""
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from semcache.cli import main
sys.exit(main({options!r}))
"""
    environment = {"TMPDIR": str(tmp_path), "PYTHONPATH": str(Path(semcache.__file__).parent.parent)}
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, env=environment) as running:
        try:
            while "replaying" not in running.stderr.readline():
                assert running.poll() is None
            running.send_signal(signal.SIGINT)
            _, rest = running.communicate(timeout=60)
        finally:
            running.kill()
    assert rest == "semcache: stopped\n"
    assert running.returncode == 130
    assert list(tmp_path.iterdir()) == [path]


def test_shipped_recording_replays_without_the_extra(capsys):
    """The example's exact hits: every line is read, and none of them is wrong."""
    assert main(["replay", str(SUPPORT), "--no-semantic", "--quiet", "--strict", "--json", "-"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["requests"], told["bypassed"], told["wrong_hits"]) == (634, 5, 0)
    assert told["hit_rate"] == told["exact_only_hit_rate"] < told["oracle_hit_rate"]


@pytest.mark.semantic
def test_shipped_recording_shows_what_a_threshold_gets_wrong(capsys):
    """With the real model, lookalikes of the example are served by a threshold: the report counts them as wrong."""
    options = ["--policy", "threshold:0.9", "--limit", "100", "--quiet", "--json", "-"]
    assert main(["replay", str(SUPPORT), *options]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["embedder"] == "all-MiniLM-L6-v2"
    assert told["semantic"]["wrong"] > 0
    assert told["hit_rate"] > told["exact_only_hit_rate"]
    assert told["embed_seconds"] < told["wall_seconds"]
