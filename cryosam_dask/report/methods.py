"""A methods paragraph and its references, written from the store alone, ready to be pasted into a manuscript."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from cryosam_dask.models.catalog import about_encoder, about_segmenter, looks_at_boxes
from cryosam_dask.models.info import About
from cryosam_dask.report import words
from cryosam_dask.report.facts import Facts
from cryosam_dask.report.queries import Query
from cryosam_dask.settings import FeatureSettings, MatchSettings, PropagationSettings, Settings
from cryosam_dask.stages import cut, segment, select, structure
from cryosam_dask.store import marks
from cryosam_dask.store.run_store import RunStore

REFERENCES = {
    "cryosam": "Zhao Y, Bian H, Mu M, Uddin MR, Li Z, Li X, Wang T, Xu M. Training-free CryoET tomogram segmentation. "
    "Medical Image Computing and Computer Assisted Intervention – MICCAI 2024.",
    "dask": "Rocklin M. Dask: parallel computation with blocked algorithms and task scheduling. "
    "Proceedings of the 14th Python in Science Conference, 2015. https://www.dask.org",
    "zarr": "Zarr developers. Zarr: chunked, compressed, N-dimensional arrays. https://zarr.dev",
}
"""What is cited besides the models, by key."""


@dataclass(frozen=True)
class Methods:
    """Paragraphs with citations as numbers in brackets, and the references in the order of their numbers."""

    paragraphs: tuple[str, ...]
    references: tuple[str, ...]


class _Citations:
    """Numbers references in the order in which they are cited."""

    def __init__(self) -> None:
        self.references: list[str] = []

    def __call__(self, *keys: str) -> str:
        """The numbers of references, by their keys in `REFERENCES`."""
        return self.texts(REFERENCES[key] for key in keys)

    def texts(self, references: Iterable[str]) -> str:
        """The numbers of references."""
        cited = list(references)
        self.references += [each for each in dict.fromkeys(cited) if each not in self.references]
        return f"[{','.join(map(str, sorted(self.references.index(each) + 1 for each in cited)))}]"

    def model(self, about: About) -> str:
        """A model in the words of its entry, with its references."""
        return f"{about.phrase} {self.texts(about.references)}" if about.references else about.phrase


def methods(store: RunStore, facts: Facts, queries: list[Query]) -> Methods:
    """Write the methods paragraphs of a run. Parts that have not been run are left out."""
    cite = _Citations()
    paragraphs = [_tomogram(facts, cite)]
    described: list[tuple[FeatureSettings, PropagationSettings]] = []
    for query in queries:
        if query.settings is None:
            continue
        models = (query.settings.features, query.settings.propagation)
        if models not in described:
            described.append(models)
            paragraphs.append(_models(store, facts, query, query.settings, cite))
        paragraphs.append(_query(query, query.settings, cite))
    return Methods(tuple(paragraphs), tuple(cite.references))


def _tomogram(facts: Facts, cite: _Citations) -> str:
    z, y, x = facts.shape
    size = (
        f"a voxel size of {facts.isotropic:.4g} Å"
        if facts.isotropic is not None
        else f"voxels of {' × '.join(f'{v:.4g}' for v in facts.voxel_size)} Å (z × y × x)"
    )
    devices = sorted({device for stage in facts.stages for device in stage.devices.split(", ") if device})
    where = f" Computations ran on {' and '.join(map(_device, devices))}." if devices else ""
    versions = [f"{name} {facts.packages[name]}" for name in ("dask", "zarr", "torch") if name in facts.packages]
    using = f" ({', '.join(versions)})" if versions else ""
    return (
        f"The tomogram {facts.name} ({z} × {y} × {x} voxels along z, y, x, with {size}) was segmented with "
        f"cryosam_dask {facts.version}, an out-of-core implementation of CryoSAM {cite('cryosam')} on Dask "
        f"{cite('dask')} and Zarr {cite('zarr')}{using}; no training on it and no annotation beyond the prompts was "
        f"used.{where}"
    )


def _device(name: str) -> str:
    return "CPUs" if name == "cpu" else "GPUs (CUDA)" if name.startswith("cuda") else name


def _models(store: RunStore, facts: Facts, query: Query, settings: Settings, cite: _Citations) -> str:
    features, propagation = settings.features, settings.propagation
    weights = _segmenter_weights(store, query.name)
    return f"{_features(features, facts.weights, cite)} {_masks(propagation, weights, cite)}"


def _segmenter_weights(store: RunStore, name: str) -> str:
    for role in (segment.PROMPTS, segment.PROPOSALS):
        record = marks.found_stage(store, role.stage_name(name))
        if record is not None:
            return str(record["settings"]["propagation"].get("weights", ""))
    return ""


def _identity(spec: str, weights: str) -> str:
    """A model's name with its weights' digest, or its version, without the path that weights were given by."""
    name = spec.partition("=")[0]
    first, *rest = weights.split(" ")
    digest = next((word.removeprefix("sha256:") for word in rest if word.startswith("sha256:")), None)
    if digest is not None:
        return f"{name}, weights SHA-256 {digest}"
    version = first.removeprefix(name).lstrip("-")
    return f"{name}, version {version}" if version else name


def _features(settings: FeatureSettings, weights: str, cite: _Citations) -> str:
    kind = cite.model(about_encoder(settings.encoder))
    thick = f", each averaged over {settings.thickness} neighbouring slices," if settings.thickness > 1 else ""
    size = "" if settings.slice_size is None else f", resized to {settings.slice_size} pixels,"
    precision = "" if settings.precision == "auto" else f", in {settings.precision}"
    standard = {
        "none": "",
        "scale": " Channels were scaled to unit deviation over the tomogram.",
        "whiten": " Tokens were whitened over the tomogram.",
    }[settings.standardize]
    return (
        f"All slices along z, y and x{thick}{size} were encoded as {kind} ({_identity(settings.encoder, weights)}"
        f"{precision}). The upsampled features of the three views were concatenated for each voxel.{standard}"
    )


def _masks(settings: PropagationSettings, weights: str, cite: _Citations) -> str:
    model = cite.model(about_segmenter(settings.segmenter))
    if looks_at_boxes(settings.segmenter):
        return (
            f"Points became three-dimensional masks by {model} ({_identity(settings.segmenter, weights)}), which "
            "looked at a box around each, at the binning and in the contrast that suited the prompts best."
        )
    thick = f" on planes averaged over {settings.plane_thickness} slices" if settings.plane_thickness > 1 else ""
    area = "" if settings.max_area is None else f" and a mask area below {settings.max_area} pixels"
    guards = (
        f", with the start plane's contrast (at least {settings.min_contrast:g}), area ({settings.min_area_ratio:g} to "
        f"{settings.max_area_ratio:g}) and centre (within {settings.max_drift:g} radii) as further criteria"
        if settings.rule == "guarded"
        else ""
    )
    merge = (
        "their union"
        if settings.merge == "union"
        else f"the voxels that the masks of at least {settings.min_votes} axes share"
    )
    return (
        f"Points became three-dimensional masks by cross-plane self-prompting of {model} "
        f"({_identity(settings.segmenter, weights)}){thick}: masks were propagated from plane to plane along ±z, "
        f"±y and ±x as long as the intersection over union of neighbours exceeded {settings.tau_iou:g}{area}{guards}; "
        f"instances are {merge}."
    )


def _query(query: Query, settings: Settings, cite: _Citations) -> str:
    parts = [_prompts(query), _learned(query), _matching(query, settings.match, cite), _instances(query, settings)]
    parts.append(query.reviewed.replace("Reviewed", "The picks were reviewed", 1))
    return " ".join(part for part in parts if part)


def _prompts(query: Query) -> str:
    if query.borrowed:
        points = words.counted(len(query.borrowed.get("points", [])), "point")
        return (
            f"The query “{query.name}” was prompted in another tomogram, {query.borrowed.get('tomogram', '?')} "
            f"({points}), and applied to this one."
        )
    count = len(query.points)
    if not count:
        return f"The query “{query.name}” was not prompted to its end."
    shown = "; ".join(", ".join(f"{v:g}" for v in point) for point in query.points[:5])
    more = f" and {count - 5} more" if count > 5 else ""
    points = words.counted(count, "point")
    unlike = f" and {len(query.negatives)} on what is not of its kind" if len(query.negatives) else ""
    return f"The query “{query.name}” was given by {points}, z, y, x = {shown}{more} (voxels from 0){unlike}."


def _learned(query: Query) -> str:
    if not query.learned:
        return ""
    return f"It was refined by {words.counted(query.learned, 'decision')} of people who accepted and rejected picks."


def _matching(query: Query, settings: MatchSettings, cite: _Citations) -> str:
    if query.maps is None:
        return ""
    ratios = ", ".join(map(str, settings.ratios))
    how = "hierarchical matching" if len(settings.ratios) > 1 else "matching"
    centred = " after subtracting the tomogram's mean feature" if settings.center else ""
    text = (
        f"Its mean feature was compared with all others by cosine similarity{centred}, {how} on cells of "
        f"{ratios} voxels and a threshold of {settings.tau_sim:g}."
    )
    if query.scores is None:
        return text
    if settings.rank == "profile":
        unlike = ", leaving out those nearer to what is not of the kind" if len(query.negatives) else ""
        text += " Candidates were ranked by the radial density profiles around them, calibrated by the background"
        text += f"{unlike}."
    if settings.rank == "descriptor":
        text += " Places that look like the middle of an instance were ranked by the probability that they are of the"
        text += " kind, from the descriptors of their masks."
    if not query.scores.proposals:
        return f"{text} None of {words.counted(query.scores.candidates, 'candidate')} became a proposal."
    if settings.count == "auto" and settings.structure == "extended":
        share = f"{structure.ALIKE:.0%} of the median similarity within the prompted masks"
        chosen = f"the {query.scores.proposals} of at least {share}"
    elif settings.count == "auto":
        way = cut.WAYS[settings.rank]
        by = f"{way.words} {cite.texts([way.reference])}" if way.reference else way.words
        chosen = f"the {query.scores.proposals} best, cut by {by},"
    else:
        chosen = f"the {query.scores.proposals} best (K = {settings.count})"
    return f"{text} Of {query.scores.candidates} candidates, {chosen} became proposals."


def _instances(query: Query, settings: Settings) -> str:
    instances = query.found
    if instances is None:
        return ""
    of = f" of {instances.segmented} segmented" if instances.segmented is not None else ""
    volume = (
        "" if instances.median_volume is None else f"; the median volume is {words.short(instances.median_volume)} nm³"
    )
    others = (
        f" Of instances of different kinds at one place ({', '.join((query.name, *query.kinds))}) the best was kept."
        if query.kinds
        else ""
    )
    kept = f"{instances.kept} instances{of} were kept"
    if settings.match.structure == "extended":
        kept = f"Masks{of} that overlap or touch were joined to {instances.kept} instances of an extended structure"
    return (
        f"{kept}, leaving out {_rejected(query, settings.match)}those with more than "
        f"{select.share_of_duplicates(settings):.0%} of their voxels in a better one{volume}.{others}"
    )


def _rejected(query: Query, settings: MatchSettings) -> str:
    """Which instances are left out besides duplicates."""
    if settings.structure == "extended":
        return f"those with a mean feature of a similarity below {structure.MOST_UNLIKE:g}, and "
    if settings.rank == "profile":
        return f"those more than {select.SIZE_FACTOR:g} times larger or smaller than the prompted masks, and "
    return "those more similar to what is not of the kind, and " if len(query.negatives) else ""
