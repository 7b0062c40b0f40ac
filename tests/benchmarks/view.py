"""How long a person waits at the page: each step asked for as the page asks, at a server of its own.

    python tests/benchmarks/view.py TOMO.mrc --out RUN.zarr --clicks Z,Y,X [Z,Y,X …] [--steps click like find]

RUN.zarr is made if it is not there. Prints one JSON line: seconds until the server's first line, until the tomogram's
first tile and until all of it is read in; for each click, seconds until its first mask and until the one that stays;
seconds of "where is its like" with features to make, of the same for a second kind on features that are there, and of
"find all", with the time until its first pick. Times of the machine's processors are beside them: other programs make
waiting longer.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

Json = dict[str, Any]
POLL = 0.05
STEPS = ("click", "like", "find")


class Page:
    """What the page asks a server for."""

    def __init__(self, source: str, out: Path) -> None:
        command = [sys.executable, "-c", "import sys; from cryosam_dask.cli import main; sys.exit(main())"]
        command += ["view", source, "--out", str(out), "--no-browser"]
        self.begun = time.perf_counter()
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.url = next(line for line in self.process.stdout if "http" in line).split()[0]
        self.listening = time.perf_counter() - self.begun

    def ask(self, path: str, body: Json | None = None) -> bytes:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        return bytes(urllib.request.urlopen(request, timeout=60).read())

    def state(self) -> Json:
        return dict(json.loads(self.ask("api/state")))

    def do(self, action: str, **body: Any) -> Json:
        return dict(json.loads(self.ask(f"api/{action}", body)))

    def until(self, there: Callable[[Json], Any], since: float) -> float:
        """Seconds from `since` until the state is as asked for."""
        while not there(self.state()):
            time.sleep(POLL)
        return round(time.perf_counter() - since, 2)

    def kind(self, state: Json, name: str) -> Json:
        return next(dict(kind) for kind in state["kinds"] if kind["name"] == name)

    def idle(self, since: float) -> float:
        return self.until(lambda state: state["job"] is None, since)

    def spent(self) -> float:
        """Processor seconds of the server and of what it started."""
        parents = {self.process.pid}
        stats = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    fields = (entry / "stat").read_text().rpartition(")")[2].split()
                except OSError:
                    continue
                stats[int(entry.name)] = int(fields[1]), sum(map(int, fields[11:15]))
        for pid in sorted(stats):
            if stats[pid][0] in parents:
                parents.add(pid)
        return sum(stats[pid][1] for pid in parents if pid in stats) / os.sysconf("SC_CLK_TCK")

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(30)


def opened(page: Page) -> Json:
    """Times of opening."""

    def first_tile(state: Json) -> bool:
        if not state["tomogram"]:
            return False
        volume = f"data/tomogram-v{state['tomogram']['version']}"
        try:
            scale = json.loads(page.ask(f"{volume}/info"))["scales"][-1]
            ends = [min(c, s) for c, s in zip(scale["chunk_sizes"][0], scale["size"], strict=True)]
            page.ask(f"{volume}/{scale['key']}/" + "_".join(f"0-{end}" for end in ends))
        except urllib.error.HTTPError:  # not there yet
            return False
        return True

    return {
        "listening": round(page.listening, 2),
        "first tile": page.until(first_tile, page.begun),
        "read in": page.idle(page.begun),
    }


def clicked(page: Page, name: str, point: list[float]) -> Json:
    """Times of a click on a new kind."""
    if name not in [kind["name"] for kind in page.state()["kinds"]]:
        page.do("kind/add", name=name)
    before, since = page.spent(), time.perf_counter()
    number = page.do("click/add", kind=name, position=point, positive=True)["id"]

    def click(state: Json) -> Json:
        return next(dict(c) for c in page.kind(state, name)["clicks"] if c["id"] == number)

    first = page.until(lambda state: click(state).get("voxels") or click(state)["state"] != "pending", since)
    last = page.until(lambda state: click(state)["state"] != "pending", since)
    return {"first mask": first, "mask": last, "processor": round(page.spent() - before, 2)}


def job(page: Page, action: str, name: str) -> Json:
    """Times of a job, and of the first pick of it."""
    before, since = page.spent(), time.perf_counter()
    page.do(action, kind=name)
    out: Json = {}
    while (state := page.state())["job"] is not None:
        if "map" not in out and page.kind(state, name).get("similarity"):
            out["map"] = round(time.perf_counter() - since, 2)
        if "first pick" not in out and (page.kind(state, name).get("picks") or {}).get("count"):
            out["first pick"] = round(time.perf_counter() - since, 2)
        time.sleep(POLL)
    if error := state.get("message"):
        out["message"] = error
    return out | {"seconds": round(time.perf_counter() - since, 2), "processor": round(page.spent() - before, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tomogram")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--clicks", nargs="+", required=True, metavar="Z,Y,X")
    parser.add_argument("--steps", nargs="*", choices=STEPS, default=STEPS)
    options = parser.parse_args()
    page = Page(options.tomogram, options.out)
    try:
        row: Json = {"opened": opened(page)}
        time.sleep(5)  # the model is loaded as the page opens
        kinds = [f"kind-{number}" for number in range(len(options.clicks))]
        points = [list(map(float, text.split(","))) for text in options.clicks]
        if "click" in options.steps:
            row["clicks"] = [clicked(page, *each) for each in zip(kinds, points, strict=True)]
        if "like" in options.steps:
            row["like"] = [job(page, "like", name) for name in kinds[:2]]
        if "find" in options.steps:
            row["find"] = job(page, "find", kinds[0])
        print(json.dumps(row))
    finally:
        page.close()


if __name__ == "__main__":
    main()
