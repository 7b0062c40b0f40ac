"""The script that measures a GPU records what fails, and writes its figures into the page."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import gpu  # noqa: E402


def test_a_benchmark_that_fails_or_takes_too_long_is_recorded() -> None:
    python = [sys.executable, "-c"]
    assert gpu.run([*python, "print('first'); print('{\"a\": 1}')"], 20)["a"] == 1
    assert gpu.run([*python, "raise SystemExit('out of memory')"], 20)["error"] == "out of memory"
    assert gpu.run([*python, "import time; time.sleep(60)"], 0.5)["error"] == "ended after 0 s"


def test_the_benchmarks_of_a_gpu_take_their_arguments_and_their_shares_are_all_of_the_time() -> None:
    assert sum(part.share for part in gpu.PARTS.values()) == pytest.approx(1)
    for part in gpu.PARTS.values():
        text = (BENCHMARKS / part.script).read_text()
        words = {word for word in f"{part.full} {part.tiny} --device".split() if word.startswith("--")}
        assert not [word for word in words if f'"{word}"' not in text]


def test_figures_replace_those_that_are_in_the_page(tmp_path: Path) -> None:
    row = {
        "device": "A GPU",
        "versions": {"torch": "2.9"},
        "tiny": False,
        "parts": {
            "features": {"stage": {"z": {"forward_seconds": 1.0, "unit_seconds": 1.25}}, "seconds": 9},
            "planes": {"error": "ended after 150 s", "seconds": 150},
        },
    }
    figures, page = tmp_path / "out.json", tmp_path / "gpu.md"
    figures.write_text(json.dumps(row))
    page.write_text(f"# Title\n\n{gpu.BEGIN}\nold\n{gpu.END}\n\nafter\n")
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), "page", str(figures), "--docs", str(page)]
    subprocess.run(command, check=True)
    text = page.read_text()
    assert "old" not in text
    assert text.startswith("# Title")
    assert text.endswith("after\n")
    assert "Device: A GPU" in text
    assert "| features, units of the z view: the model alone, and the stage | 1.0 s, 1.25 s |" in text
    assert "| planes | not measured: ended after 150 s |" in text
