"""Numbers as the page writes them."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """ "3.2 s", "4 min 05 s", "2 h 10 min"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{int(seconds // 60)} min {int(seconds % 60):02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def size(count: float) -> str:
    """Bytes: "340 MB", "2.1 GB"."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def percent(share: float) -> str:
    return f"{100 * share:.2f}%"


def short(value: float) -> str:
    """Three digits that count: "0.0123", "2650"."""
    return f"{float(f'{value:.3g}'):g}" if abs(value) < 1000 else number(float(f"{value:.3g}"))


def number(count: float) -> str:
    """A whole number with thin spaces between thousands."""
    return f"{count:,.0f}".replace(",", "\u202f")


def counted(count: int, thing: str) -> str:
    """ "one point", "3 points"."""
    return f"one {thing}" if count == 1 else f"{count} {thing}s"
