"""The paper's tables, row by row, with the configuration of each row.

Zhao et al., Training-free CryoET Tomogram Segmentation, MICCAI 2024 (https://doi.org/10.1007/978-3-031-72111-3_12),
section 3: Tables 1, 2 and 3 and Figure 5, on EMPIAR-10499. Every published F1 is, within rounding, the harmonic mean of
the precision and recall beside it: it follows from the means over tomograms, and is not itself averaged.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Matching = Literal["hierarchical", "naive"]

SINGLE = None
"""Share of the annotations that stands for one prompt in each tomogram."""

SHARES = (SINGLE, 0.05, 0.10, 0.30, 0.50, 0.70)
COUNT = 512
ABLATION = 20
"""Tables 2 and 3 and Figure 5 are of the first 20 tilt series, Table 1 of all 65."""

ALL = 1_000_000_000
"""A number of proposals, K, that is never reached: all of them."""

COUNTS = (128, 256, 512, 1024, ALL)
"""Values of K for Figure 5, whose legend has 512, 1024 and "All"; its figures are not published as numbers."""

ENCODERS = {"SAM": "sam-vith", "DINO": "dino-vitb16", "DINOv2": "dinov2-vitl14"}
"""Encoders of Table 2. The paper names the backbones of DINOv2 and of the SAM that segments, not those of DINO and of
SAM as an encoder: here that SAM too, and the largest DINO at the patch size that SAM and DINOv2 come nearest to."""

DEFAULT = "DINOv2"
"""The encoder of Tables 1 and 3 and of Figure 5."""


@dataclass(frozen=True)
class Config:
    """One way of running a tomogram.

    Attributes
    ----------
    encoder : its name in Table 2
    share : of the annotations that are prompts, or `SINGLE`
    matching : "hierarchical" over the ratios of the settings, "naive" on voxels alone
    counts : K, the prompts that are proposed; several are taken from one run with the largest; none: the settings'
    """

    encoder: str = DEFAULT
    share: float | None = SINGLE
    matching: Matching = "hierarchical"
    counts: tuple[int, ...] = ()

    @property
    def key(self) -> str:
        """A name for files, which tells configurations apart."""
        prompts = "single" if self.share is None else f"{self.share * 100:g}pct"
        some = ["k" + ("all" if self.counts[-1] == ALL else str(self.counts[-1]))] if self.counts else []
        return re.sub(r"[^A-Za-z0-9.-]", "_", "-".join([self.encoder, prompts, self.matching, *some]))


@dataclass(frozen=True)
class Published:
    """Figures in percent, and minutes a tomogram as printed; None where the paper has none."""

    precision: float | None = None
    recall: float | None = None
    f1: float | None = None
    minutes: str = ""


@dataclass(frozen=True)
class Line:
    """A row of a table: what it is called, how it is made (None: another method, quoted), what is published, and of
    several K which."""

    label: str
    prompts: str
    config: Config | None
    published: Published
    count: int | None = None


@dataclass(frozen=True)
class Table:
    """A table of the paper. `limit` : it is of the first so many tomograms; None: of all."""

    name: str
    title: str
    lines: tuple[Line, ...]
    limit: int | None = None

    @property
    def configs(self) -> tuple[Config, ...]:
        """The configurations of its rows, each once."""
        return tuple(dict.fromkeys(line.config for line in self.lines if line.config is not None))


def prompts_in_words(share: float | None) -> str:
    """As the paper's tables call it."""
    return "< 1% (single prompt)" if share is None else f"{share * 100:g}%"


def _line(label: str, config: Config, published: tuple[float, float, float], minutes: str = "") -> Line:
    return Line(label, prompts_in_words(config.share), config, Published(*published, minutes))


def _quoted(label: str, prompts: str, published: tuple[float, float, float], minutes: str = "") -> Line:
    return Line(label, prompts, None, Published(*published, minutes))


def table_1() -> Table:
    """Particle picking with more and more annotations as prompts, beside other methods."""
    figures = (
        (53.1, 55.3, 54.2),
        (57.8, 74.3, 65.0),
        (58.2, 75.1, 65.5),
        (58.1, 75.4, 65.6),
        (58.0, 75.3, 65.5),
        (58.5, 79.4, 67.4),
    )
    others = (
        _quoted("EMAN2", "-", (26.1, 55.3, 35.5), "2-5"),
        _quoted("crYOLO", "100%", (47.8, 56.8, 52.0), "30-40"),
        _quoted("Huang et al.", "5%", (49.6, 58.1, 53.5), "5-10"),
        _quoted("Huang et al.", "10%", (50.1, 58.2, 53.8), "5-10"),
        _quoted("Huang et al.", "30%", (55.9, 60.3, 58.0), "5-10"),
        _quoted("Huang et al.", "50%", (53.0, 65.1, 58.4), "5-10"),
        _quoted("Huang et al.", "70%", (54.9, 66.7, 60.2), "5-10"),
    )
    ours = tuple(_line("CryoSAM", Config(share=s), f, "10-15") for s, f in zip(SHARES, figures, strict=True))
    return Table("1", "Table 1. Particle picking on EMPIAR-10499", others + ours)


def table_2(limit: int | None = ABLATION) -> Table:
    """Encoders."""
    figures = {
        "SAM": ((37.4, 38.8, 38.1), (44.1, 60.0, 50.8)),
        "DINO": ((56.3, 52.8, 54.5), (63.2, 74.4, 68.3)),
        "DINOv2": ((55.4, 58.8, 57.1), (59.8, 80.1, 68.5)),
    }
    lines = [
        _line(encoder, Config(encoder=encoder, share=share), published)
        for encoder, pair in figures.items()
        for share, published in zip((SINGLE, 0.10), pair, strict=True)
    ]
    return Table("2", "Table 2. Feature extractors", tuple(lines), limit)


def table_3(limit: int | None = ABLATION) -> Table:
    """Strategies of matching."""
    rows: tuple[tuple[str, Matching, str, tuple[tuple[float, float, float], ...]], ...] = (
        ("Naive", "naive", "60-65", ((53.5, 56.4, 54.9), (60.8, 80.7, 69.4))),
        ("Hierarchical", "hierarchical", "10-15", ((55.4, 58.8, 57.1), (59.8, 80.1, 68.5))),
    )
    lines = [
        _line(label, Config(share=share, matching=matching), published, minutes)
        for label, matching, minutes, pair in rows
        for share, published in zip((SINGLE, 0.10), pair, strict=True)
    ]
    return Table("3", "Table 3. Feature matching strategies", tuple(lines), limit)


def figure_5(limit: int | None = ABLATION, counts: tuple[int, ...] = COUNTS) -> Table:
    """Numbers of proposed prompts, K."""
    ordered = tuple(sorted(set(counts)))
    lines = [
        Line(
            f"K = {count_in_words(count)}",
            prompts_in_words(share),
            Config(share=share, counts=ordered),
            Published(),
            count,
        )
        for share in (SINGLE, 0.10)
        for count in ordered
    ]
    return Table("fig5", "Figure 5. Number of proposed prompts, K", tuple(lines), limit)


def count_in_words(count: int) -> str:
    return "all" if count == ALL else str(count)


def tables(names: tuple[str, ...], limit: int | None = ABLATION, counts: tuple[int, ...] = COUNTS) -> list[Table]:
    """The tables of these names: 1, 2, 3, fig5; in the paper's order."""
    every = {"1": table_1(), "2": table_2(limit), "3": table_3(limit), "fig5": figure_5(limit, counts)}
    return [table for name, table in every.items() if name in names]


TABLES = ("1", "2", "3", "fig5")
