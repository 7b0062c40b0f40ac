"""Where everything is in a run's store: array names, shapes, chunks, dimension names. Nothing else spells a path.

RUN.zarr/                        OME-Zarr 0.5 image, z y x in ångström
  scale0/tomogram, scale1/…      the tomogram and its 2× levels
  statistics                     per box of the ingest
  digests                        per box, SHA-256 of its voxels, where the tomogram came as an array and not as a file
  features/r1, r4, r8, r16       latent views z, y, x (float16) and their Gram maps (float32)
  features/dense/r16             3C-channel features, where `dense_ratios` asks for them
  features/standardization       per view mean and linear map of the tokens
  embeddings/z, y, x             the segmenter's plane embeddings, one chunk a plane; planes/: what they are of
  queries/NAME                   prompts, their instances, the query feature
  negatives/NAME                 points that are not of the kind, their instances, features and profiles
  similarity/NAME/r16, r8, …     similarity on the cells of each ratio
  proposals/NAME                 prompts found by matching
  instances/NAME                 masks of the proposals, by group
  former/NAME                    masks of former proposals, until those that decisions led to are segmented
  picks/NAME                     kept instances, one row each; pieces/: the masks that extended structures have
  clicks                         kinds and clicks of the page beside the data: logs, one for each writer
  reviews/NAME                   what people decided about picks: logs, one for each writer
  refined/NAME                   a query's examples from these decisions, and its better direction
  labels/NAME, NAME_semantic     OME-Zarr labels
  labels/kinds                   which kind each voxel is of, where several kinds competed
  marks/STAGE                    done marks: one byte a unit
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Literal

from cryosam_dask.geometry import Box, boxes
from cryosam_dask.types import AXES, Axis, Shape3

FORMAT = 1
CHUNK: Shape3 = (32, 64, 64)
SLAB = 16
"""Slices that the feature stage encodes together: a multiple of every ratio, so that no slab depends on another."""

INGEST_BOX: Shape3 = (32, 256, 4096)
"""Voxels that a unit of the ingest takes at most: whole rows of most files, 128 MiB in single precision."""

INGEST_SLAB = INGEST_BOX[0]
STATISTICS = "statistics"
DIGESTS = "digests"
TOMOGRAM_VARIABLE = "tomogram"
LABELS_VARIABLE = "labels"
FEATURES, EMBEDDINGS, LABELS, MARKS = "features", "embeddings", "labels", "marks"
QUERIES, NEGATIVES, INSTANCES, FORMER = "queries", "negatives", "instances", "former"
PROPOSALS, PICKS, SIMILARITY, JOURNAL = "proposals", "picks", "similarity", "journal"
REVIEWS, REFINED = "reviews", "refined"
CLICKS = "clicks"
STANDARDIZATION = f"{FEATURES}/standardization"
KINDS = "kinds"
"""The name of the label image of all kinds; no query of these kinds may have it."""
MOST_KINDS = 254
"""The most kinds in one run: that image has one byte a voxel."""
GRAM_MAPS = ("self", "down", "right", "cross")
GRAM_SIDE = 128
"""Tokens of the side of a chunk of Gram maps, about. Several pieces of a slab may share one; a slab has one writer."""

CHUNK_BYTES = 4 << 20


SIMILARITY_VOXELS: Shape3 = (64, 256, 256)
"""Cells in a unit of matching on voxels, at most; on coarser cells a unit is a chunk."""


def feature_slices(axis: Axis) -> int:
    """Slices of a unit of features: half a chunk, so that the units of a view read each chunk of the tomogram twice.

    Smaller units would read it more often; larger ones hold more at a time, and fewer workers can share a view.
    """
    return max(SLAB, CHUNK[AXES.index(axis)] // 2)


def level_group(level: int) -> str:
    """Group of one resolution level; level 0 is full resolution."""
    return f"scale{level}"


def tomogram(level: int = 0) -> str:
    return f"{level_group(level)}/{TOMOGRAM_VARIABLE}"


def labels_group(name: str) -> str:
    return f"{LABELS}/{name}"


def labels(name: str, level: int = 0) -> str:
    return f"{labels_group(name)}/{level_group(level)}/{LABELS_VARIABLE}"


def semantic_name(name: str) -> str:
    return f"{name}_semantic"


def features_group(ratio: int) -> str:
    return f"{FEATURES}/r{ratio}"


def latents(ratio: int, axis: Axis) -> str:
    return f"{features_group(ratio)}/{axis}"


def gram(ratio: int, axis: Axis) -> str:
    return f"{features_group(ratio)}/{axis}_gram"


def dense_group(ratio: int) -> str:
    return f"{FEATURES}/dense/r{ratio}"


def dense(ratio: int) -> str:
    return f"{dense_group(ratio)}/features"


def feature_sums(axis: Axis) -> str:
    return f"{FEATURES}/sums/{axis}"


def embeddings(axis: Axis) -> str:
    return f"{EMBEDDINGS}/{axis}"


def planes(axis: Axis) -> str:
    return f"{EMBEDDINGS}/planes/{axis}"


QueryArray = Literal[
    "feature",
    "mean",
    "points",
    "sizes",
    "profiles",
    "template",
    "unmoved",
    "descriptors",
    "negative_features",
    "negative_profiles",
    "negative_descriptors",
    "direction",
    "decided",
    "decided_descriptors",
]
"""Arrays of a query: the feature and the mean that it is centred by, (3C,); the prompts, (n, 3); voxels of the prompted
instances; their radial profiles, as fitted and as they stand, and the template; their descriptors, (n, D); what a
borrowed query brings along, of negatives and of what was decided where it is from."""

NegativeArray = Literal["points", "features", "profiles", "descriptors"]
RefinedArray = Literal["points", "accepted", "features", "descriptors", "profiles", "direction"]
"""Decided places, (k, 3); whether they were accepted, (k,); what they are like; and the feature that is searched for in
the place of the query's, (3C,)."""

ProposalArray = Literal["points", "scores", "candidates", "candidate_scores"]
ProfileArray = Literal["centres", "profiles", "unmoved"]
LookArray = Literal["centres", "descriptors", "quality", "centrality", "sizes", "classes"]


def query(name: str) -> str:
    return f"{QUERIES}/{name}"


def query_array(name: str, array: QueryArray) -> str:
    return f"{query(name)}/{array}"


def negatives(name: str) -> str:
    """Group of a query's negative points: their instances, features and profiles."""
    return f"{NEGATIVES}/{name}"


def negative_array(name: str, array: NegativeArray) -> str:
    return f"{negatives(name)}/{array}"


def similarities(name: str) -> str:
    """Group of all ratios' similarity."""
    return f"{SIMILARITY}/{name}"


def similarity_group(name: str, ratio: int) -> str:
    return f"{similarities(name)}/r{ratio}"


def similarity(name: str, ratio: int) -> str:
    return f"{similarity_group(name, ratio)}/similarity"


def dots(name: str, ratio: int, axis: Axis) -> str:
    """Products of a view's tokens with the query."""
    return f"{similarity_group(name, ratio)}/dots/{axis}"


def proposals(name: str) -> str:
    return f"{PROPOSALS}/{name}"


def proposal_array(name: str, array: ProposalArray) -> str:
    return f"{proposals(name)}/{array}"


def instances(name: str) -> str:
    return f"{INSTANCES}/{name}"


def group(where: str, index: int) -> str:
    """Instances of one group of prompts of a query or of its proposals."""
    return f"{where}/group{index:05d}"


def member(group: str, array: str) -> str:
    """An array of a group."""
    return f"{group}/{array}"


def instance_array(where: str, index: int, array: str) -> str:
    """An array of `store.instances` of one group of prompts."""
    return member(group(where, index), array)


def state(where: str, index: int) -> str:
    """The state of a group that waits for planes."""
    return f"{where}/state{index:05d}"


def former(name: str) -> str:
    """Group of the masks of a query's former proposals, which are in groups as those of its proposals."""
    return f"{FORMER}/{name}"


def former_places(name: str) -> str:
    """Where those proposals were, and which instance of which group is of each."""
    return f"{former(name)}/places"


def profiles(name: str, index: int) -> str:
    """Radial profiles around the candidates, or the random places, of one unit."""
    return f"{proposals(name)}/profiles{index:05d}"


def profile_array(name: str, index: int, array: ProfileArray) -> str:
    return f"{profiles(name, index)}/{array}"


def looks(name: str, index: int) -> str:
    """What a segmenter of volumes saw in one tile of the tomogram."""
    return f"{proposals(name)}/looks{index:05d}"


def look_array(name: str, index: int, array: LookArray) -> str:
    return f"{looks(name, index)}/{array}"


def seen_masks(name: str) -> str:
    """Groups of masks of these places, one for each tile, in voxels of the level that was looked at."""
    return f"{proposals(name)}/masks"


def picks(name: str) -> str:
    return f"{PICKS}/{name}"


def pick_column(name: str, column: str) -> str:
    return f"{picks(name)}/{column}"


def pieces(name: str) -> str:
    """Which masks the instances of extended structures are joined from."""
    return f"{picks(name)}/pieces"


def piece_column(name: str, column: str) -> str:
    return f"{pieces(name)}/{column}"


def reviews(name: str) -> str:
    """Group of the decisions about a query's picks."""
    return f"{REVIEWS}/{name}"


def review_log(name: str, writer: str, page: int) -> str:
    """Decisions of one writer, a fixed number to a page."""
    return f"{reviews(name)}/{writer}_{page:04d}"


def click_log(writer: str, page: int) -> str:
    """Kinds and clicks of one writer, a fixed number to a page."""
    return f"{CLICKS}/{writer}_{page:04d}"


def is_log(path: str) -> bool:
    """Whether an array is a page of a log that people's doings are added to, whatever stages have run."""
    return _LOG.fullmatch(path) is not None


def refined(name: str) -> str:
    return f"{REFINED}/{name}"


def refined_array(name: str, array: RefinedArray) -> str:
    return f"{refined(name)}/{array}"


def standardization(axis: Axis) -> str:
    return f"{STANDARDIZATION}/{axis}"


def pattern(of: Callable[..., str]) -> re.Pattern[str]:
    """A regular expression that matches every path of a function of this module, with its arguments as named groups."""
    stands = {name: _Stand(f"(?P<{name}>{_STANDS.get(name, _NAME)})") for name in inspect.signature(of).parameters}
    return re.compile(of(**stands))


class _Stand(str):
    """Stands for an argument while a path is spelt, whatever the format."""

    def __format__(self, spec: str) -> str:
        return str(self)


_NAME = "[^/]+"
_STANDS = {"axis": "[zyx]", "ratio": r"\d+", "level": r"\d+", "index": r"\d+", "where": ".+", "array": r"\w+"}


def marks(stage: str) -> str:
    return f"{MARKS}/{stage}"


_LOG = re.compile(f"({CLICKS}|{REVIEWS}/[^/]+)/[^/]+_\\d{{4}}")

_HIDDEN = re.compile(
    f"({MARKS}|{INSTANCES}|{FORMER}|{NEGATIVES}|{EMBEDDINGS}|{CLICKS}|{REVIEWS})"
    f"|({QUERIES}|{PROPOSALS})/[^/]+/(state|group|profiles|looks)\\d{{5}}"
    f"|{PROPOSALS}/[^/]+/masks"
    f"|{PICKS}/[^/]+/pieces"
    f"|{SIMILARITY}/[^/]+/r\\d+/dots"
)


def is_hidden(path: str) -> bool:
    """Whether a group holds the program's own state, which is not part of the results."""
    return _HIDDEN.fullmatch(path) is not None


MOST_LEVELS = 16
TOP_GROUPS = (
    *(
        FEATURES,
        EMBEDDINGS,
        QUERIES,
        NEGATIVES,
        SIMILARITY,
        PROPOSALS,
        INSTANCES,
        FORMER,
        PICKS,
        CLICKS,
        REVIEWS,
        REFINED,
        LABELS,
        MARKS,
    ),
    JOURNAL,
    *(level_group(level) for level in range(MOST_LEVELS)),
)
"""Groups at the root of a run."""


def level_count(shape: Shape3) -> int:
    """Levels of the image pyramid: 2× steps until the longest side is at most 256; a slab still divides by each."""
    count = 1
    while max(shape) > 256 << (count - 1) and (INGEST_SLAB >> count) >= 1:
        count += 1
    return count


def level_shape(shape: Shape3, level: int) -> Shape3:
    step = 1 << level
    z, y, x = (-(-n // step) for n in shape)
    return z, y, x


def level_chunks(level: int) -> Shape3:
    """Chunks of a level, such that a box of the ingest covers whole chunks of it, except at the volume's ends."""
    depth, rows, columns = (n >> level for n in INGEST_BOX)
    rows = min(CHUNK[1], rows)
    return depth, rows, min(CHUNK[1] * CHUNK[2] // rows, columns)


def image_boxes(shape: Shape3) -> list[Box]:
    """Boxes of voxels that images are written in: no two of them share a chunk on any level."""
    return list(boxes(shape, INGEST_BOX))


def view_dims(axis: Axis) -> tuple[str, str, str]:
    """Dimension names of a latent view's first three axes: slices, token rows, token columns."""
    rows, columns = (a for a in AXES if a != axis)
    return f"slice_{axis}", f"token_{rows}", f"token_{columns}"


def latent_chunks(slices: int, grid: tuple[int, int], channels: int) -> tuple[int, int, int, int]:
    """Chunks of a latent array: the slices of one slab, all channels, and a square of tokens of about `CHUNK_BYTES`."""
    side = max(8, int((CHUNK_BYTES / (2 * channels * max(slices, 4))) ** 0.5) // 8 * 8)
    return slices, min(side, grid[0]), min(side, grid[1]), channels


def gram_chunks(latents: tuple[int, int, int, int], grid: tuple[int, int]) -> tuple[int, int, int, int]:
    """Chunks of the Gram maps beside latents of such chunks: their slices, and more tokens, since maps are small."""
    rows, columns = (min(n, max(1, GRAM_SIDE // side) * side) for n, side in zip(grid, latents[1:3], strict=True))
    return latents[0], rows, columns, len(GRAM_MAPS)
