"""Simulated tomograms that are kept in a folder with their truth, clicks on them, and figures of what was found."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import mrcfile
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from cryosam_dask.evaluate import dice, evaluate_masks, evaluate_picks
from cryosam_dask.evaluate.detection import rank_picks
from cryosam_dask.geometry import Box
from cryosam_dask.simulate import SimulationSettings, Species, simulate
from cryosam_dask.simulate.structures import CLASS_OF
from cryosam_dask.store import instances, layout, picks
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.types import Bool

Row = dict[str, Any]
LEAK = 0.25  # share of a prompt's mask on anything but what was clicked, from which on it is said to leak


@dataclass(frozen=True)
class Case:
    """A simulated tomogram and its truth, in a folder: `tomogram.mrc`, `truth.npz`, `truth.json`.

    settings : what it was made with
    particles : (z, y, x, instance, species) of each, as `simulate.Particle`
    structures : kind of each structure, from number 1
    """

    folder: Path
    settings: SimulationSettings
    particles: tuple[tuple[float, float, float, int, str], ...]
    structures: tuple[str, ...]

    @property
    def tomogram(self) -> Path:
        return self.folder / "tomogram.mrc"

    @cached_property
    def _volumes(self) -> dict[str, NDArray[np.int32]]:
        with np.load(self.folder / "truth.npz") as file:
            return {name: file[name].astype(np.int32) for name in file.files}

    @cached_property
    def all_labels(self) -> NDArray[np.int32]:
        """(z, y, x) particles as they are numbered, then structures; 0 is neither."""
        labels = self._volumes["labels"].copy()
        free = (labels == 0) & (self._volumes["structures"] > 0)
        labels[free] = self._volumes["structures"][free] + len(self.particles)
        return labels

    @cached_property
    def kind_of(self) -> list[str]:
        """What each number of `all_labels` is, from 0."""
        return ["", *(p[4] for p in self.particles), *(CLASS_OF[kind] for kind in self.structures)]

    def labels_of(self, kind: str) -> NDArray[np.int32]:
        """(z, y, x) `all_labels` of one kind; 0 elsewhere."""
        numbers = np.array([i if name == kind else 0 for i, name in enumerate(self.kind_of)], np.int32)
        return numbers[self.all_labels]

    def centres(self, kind: str) -> NDArray[np.float64]:
        """(M, 3) voxels of the particles of one kind."""
        return np.array([p[:3] for p in self.particles if p[4] == kind], np.float64).reshape(-1, 3)

    def species(self, kind: str) -> Species | None:
        """The particles' settings; None for a structure, or for a kind that isn't here."""
        return next((s for s in self.settings.species if s.name == kind), None)

    def radius(self, kind: str) -> float:
        """Voxels: half of the particle's diameter."""
        return next(s.diameter for s in self.settings.species if s.name == kind) / 2 / (self.settings.voxel_size / 10)


def digest_of(values: Any) -> str:
    """Eight letters that say whether JSON-able values are the same."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]


def case(work: Path, name: str, settings: SimulationSettings) -> Case:
    """The simulated tomogram of these settings from the folder `work`, into which it is put if it isn't there."""
    folder = work / "tomograms" / f"{name}-{settings.seed}-{digest_of(settings.to_dict())}"
    if not folder.exists():
        made = simulate(settings)
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".part-", dir=folder.parent))
        with mrcfile.new(temporary / "tomogram.mrc", made.tomogram) as file:
            file.voxel_size = settings.voxel_size
        np.savez_compressed(temporary / "truth.npz", labels=made.labels, structures=made.structure_labels)
        truth = {"particles": made.particles, "structures": [s.kind for s in made.structures]}
        (temporary / "truth.json").write_text(json.dumps(truth | {"settings": settings.to_dict()}))
        try:
            temporary.rename(folder)
        except OSError:  # another process was faster
            shutil.rmtree(temporary)
    truth = json.loads((folder / "truth.json").read_text())
    return Case(folder, settings, tuple(tuple(p) for p in truth["particles"]), tuple(truth["structures"]))


class Click(NamedTuple):
    """A voxel (z, y, x) on an instance of the truth."""

    point: tuple[int, int, int]
    instance: int


def draw_clicks(labels: NDArray[np.int32], count: int, seed: int, extended: bool = False) -> list[Click]:
    """Clicks on instances of `labels` (z, y, x), each on another one as long as there are some.

    The first is in the middle: the voxel of the mask nearest to its centre of mass, or with `extended` one that is
    deepest inside. The others are voxels of the masks, all equally likely.
    """
    rng = np.random.default_rng(seed)
    boxes = ndimage.find_objects(labels)
    chosen = [int(i) for i in np.resize(rng.permutation(np.unique(labels[labels > 0])), count)]
    clicks = []
    for k, instance in enumerate(chosen):
        box = boxes[instance - 1]
        mask = labels[box] == instance
        voxels = np.argwhere(mask)
        if k == 0 and extended:
            depth = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1, 1:-1][mask]
            voxels = voxels[depth == depth.max()]
        elif k == 0:
            nearest = ((voxels - voxels.mean(axis=0)) ** 2).sum(axis=1).argmin()
            voxels = voxels[[nearest]]
        voxel = voxels[rng.integers(len(voxels))] + [s.start for s in box]
        clicks.append(Click((int(voxel[0]), int(voxel[1]), int(voxel[2])), instance))
    return clicks


def clicks_of(tomogram: Case, kind: str, count: int) -> list[Click]:
    """The clicks on one kind of a tomogram; the same ones each time."""
    seed = zlib.crc32(f"{tomogram.settings.seed} {kind}".encode())
    return draw_clicks(tomogram.labels_of(kind), count, seed, extended=tomogram.species(kind) is None)


def prompt_figures(store: RunStore, name: str, clicks: list[Click], tomogram: Case, kind: str) -> Row:
    """What the masks of the clicks are, means over the clicks; a click without a mask counts 0.

    prompt_size, true_size : voxels; prompt_iou : with what was clicked
    own : share of the masks on the clicked instance, or of structures on the kind; solvent : on nothing
    leaks : for each mask that lies by `LEAK` or more on other instances, or structures of other kinds, what most of
        that is
    """
    masks = _prompted(store, name)
    true_sizes = np.bincount(tomogram.all_labels.ravel())
    of_kind = np.array([k == kind for k in tomogram.kind_of])
    table, leaks = np.zeros((len(clicks), 4)), []
    for k, click in enumerate(clicks):
        if k not in masks:
            continue
        box, mask = masks[k]
        inside = tomogram.all_labels[tuple(slice(*side) for side in box)][mask]
        under = np.bincount(inside, minlength=len(of_kind))
        mine = of_kind if tomogram.species(kind) is None else np.arange(len(of_kind)) == click.instance
        size, both = len(inside), under[click.instance]
        union = size + true_sizes[click.instance] - both
        table[k] = size, both / union, under[mine].sum() / size, under[0] / size
        if 1 - table[k, 2] - table[k, 3] >= LEAK:
            under[mine] = under[0] = 0
            leaks.append(tomogram.kind_of[int(under.argmax())])
    means = dict(zip(("prompt_size", "prompt_iou", "own", "solvent"), table.mean(axis=0).tolist(), strict=True))
    return means | {"true_size": float(np.mean([true_sizes[c.instance] for c in clicks])), "leaks": leaks}


def _prompted(store: RunStore, name: str) -> dict[int, tuple[Box, Bool]]:
    """Box and mask of each click, by its place among the clicks, where anything was segmented."""
    masks: dict[int, tuple[Box, Bool]] = {}
    where = layout.query(name)
    for index in range(len(store.groups(where))):
        if (path := layout.group(where, index)) in store:
            group = instances.read(store, path)
            masks |= {int(p): (instances.as_box(group.box[i]), group.mask(i)) for i, p in enumerate(group.prompt)}
    return masks


def figures(store: RunStore, name: str, tomogram: Case, kind: str) -> Row:
    """What was found, compared with the truth; `scored` has the score of each pick and whether it is right."""
    table, found = picks.read(store, name), np.asarray(store.read(layout.labels(name)))
    truth, species = tomogram.labels_of(kind), tomogram.species(kind)
    row: Row = {"picks": len(table), "truth": len(np.unique(truth[truth > 0]))}
    if species is not None:
        places, centres = table[["z", "y", "x"]], tomogram.centres(kind)
        result = evaluate_picks(places, table["score"], centres, tomogram.radius(kind))
        for key in ("precision", "recall", "f1", "average_precision", "best_f1"):
            row[key] = getattr(result, key)
        masks = evaluate_masks(found, truth)
        row |= {"mean_iou": masks.mean_iou, "mean_iou_truth": masks.mean_iou_truth}
        right = rank_picks(places, table["score"], centres, tomogram.radius(kind)).hits
    else:
        here = truth > 0  # all False where there is none of the kind
        on = np.bincount(found[here], minlength=int(found.max()) + 1) / np.maximum(np.bincount(found.ravel()), 1)
        right = on[table["instance"].to_numpy(np.int64)] >= 0.5
        both = int(np.count_nonzero(here & (found > 0)))
        row |= {"dice": dice(found, truth), "precision": both / max(int(np.count_nonzero(found)), 1)}
        row["recall"] = both / max(int(np.count_nonzero(here)), 1)
    row["scored"] = [[round(float(s), 4), int(r)] for s, r in zip(table["score"], right, strict=True)]
    return row
