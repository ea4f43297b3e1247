"""Runs every benchmark once, and writes the ratios to out/ratios.json and the table in RESULTS.md.

python benchmarks/run.py                      all of them
python benchmarks/run.py bench_memory.py      some of them; the table keeps the other rows
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
OUT = HERE / "out"
RESULTS = HERE / "RESULTS.md"
BEGIN, END = "<!-- ratios: written by run.py -->", "<!-- end of ratios -->"


def main(arguments: list[str]) -> int:
    """Run the benchmarks named, or all, and write what they measured."""
    OUT.mkdir(exist_ok=True)
    files = [str(HERE / name) for name in arguments] or sorted(str(path) for path in HERE.glob("bench_*.py"))
    report = OUT / "benchmark.json"
    options = ["-q", "-p", "no:randomly", "-o", "python_files=bench_*.py", "-o", "timeout=1800", "-W", "default"]
    command = [sys.executable, "-m", "pytest", *options, f"--benchmark-json={report}", *files]
    failed = subprocess.run(command, check=False, cwd=HERE.parent).returncode
    if not report.exists():
        return failed
    rows = _known()
    for benchmark in json.loads(report.read_text())["benchmarks"]:
        rows[benchmark["fullname"].rpartition("/")[2]] = benchmark["extra_info"]
    ratios = {"machine": machine(), "ratios": rows}
    (OUT / "ratios.json").write_text(json.dumps(ratios, indent=2) + "\n")
    _write_table(rows)
    return failed


def _known() -> dict[str, Any]:
    path = OUT / "ratios.json"
    known: dict[str, Any] = json.loads(path.read_text())["ratios"] if path.exists() else {}
    return known


def machine() -> str:
    """Name the machine that a figure is of."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
        cpu = names[0] if names else cpu
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    packages = []
    for name in ("torch", "sentence-transformers", "faiss-cpu", "cachetools", "msgpack"):
        try:
            packages.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return (
        f"{len(os.sched_getaffinity(0))} cores ({cpu}), {memory_bytes / 2**30:.0f} GiB, "
        f"Python {platform.python_version()}, {', '.join(packages)}"
    )


def _write_table(rows: dict[str, Any]) -> None:
    lines = [
        BEGIN,
        f"Measured {datetime.now(UTC):%Y-%m-%d} on {machine()}.",
        "",
        "| what / beside what | figure | bar | | ours | beside | peers |",
        "| --- | --: | --: | :-: | --: | --: | --- |",
    ]
    lines += [*(_line(row) for row in rows.values()), END]
    old = RESULTS.read_text() if RESULTS.exists() else f"# Results\n\n{BEGIN}\n{END}\n"
    before, _, rest = old.partition(BEGIN)
    RESULTS.write_text(before + "\n".join(lines) + rest.partition(END)[2])


def _line(row: dict[str, Any]) -> str:
    bar, figure, medians, unit = row["bar"], row["ratio"], dict(row["medians"]), row["unit"]
    met = "" if bar is None else ("yes" if (figure >= bar if row["higher_is_better"] else figure <= bar) else "**no**")
    ours, bare = medians.pop("ours", None), medians.pop("bare", None)
    peers = ", ".join(f"{name} {_amount(value)} {unit}" for name, value in medians.items())
    bound = "" if bar is None else f"{'≥' if row['higher_is_better'] else '≤'} {bar:g}"
    told = [f"{_amount(value)} {unit}" if value is not None else "" for value in (ours, bare)]
    return f"| {row['question']} | {figure:.2f} | {bound} | {met} | {told[0]} | {told[1]} | {peers} |"


def _amount(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
