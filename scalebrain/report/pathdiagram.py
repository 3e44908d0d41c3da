"""Drawing of a path model: boxes for variables, arrows for paths."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from scalebrain.report.content import finite, interval, number
from scalebrain.report.templating import environment

__all__ = ["Arrow", "Path", "causal_order", "path_diagram"]

_DIAMOND = {"cst": (0.0, 0.5), "ipsi": (0.5, 0.0), "motor": (1.0, 0.5), "contra": (0.5, 1.0)}
_WIDTH, _HEIGHT, _BOX_W, _BOX_H = 900.0, 480.0, 208.0, 64.0


@dataclass(frozen=True)
class Path:
    """A directed path of a structural model, standardized."""

    outcome: str
    cause: str
    std: float
    low: float
    high: float
    p: float

    @property
    def clear(self) -> bool:
        """Whether the interval excludes zero; without one, whether p is below 0.05."""
        if math.isfinite(self.low) and math.isfinite(self.high):
            return self.low > 0 or self.high < 0
        return math.isfinite(self.p) and self.p < 0.05


@dataclass(frozen=True)
class Arrow:
    """A path on the page, from border to border, with the place of its label."""

    path: Path
    x1: float
    y1: float
    x2: float
    y2: float
    label_x: float
    label_y: float
    width: float
    css: str
    estimate: str
    interval: str


@dataclass(frozen=True)
class _Box:
    name: str
    lines: tuple[str, ...]
    x: float
    y: float


def causal_order(paths: list[Path]) -> list[str]:
    """Variables from causes to outcomes; a circle keeps the order of the model."""
    names = list(dict.fromkeys(name for p in paths for name in (p.cause, p.outcome)))
    ordered: list[str] = []
    while len(ordered) < len(names):
        left = [name for name in names if name not in ordered]
        free = [
            name
            for name in left
            if not any(p.outcome == name and p.cause in left and p.cause != name for p in paths)
        ]
        ordered += free or left[:1]
    return ordered


def path_diagram(paths: list[Path], alt: str, labels: Mapping[str, str]) -> Markup:
    """Draw paths as boxes and arrows.

    Parameters
    ----------
    paths
        Paths of the model.
    alt
        Alternative text.
    labels
        What to write into the box of a variable.

    Returns
    -------
    Markup
        An ``<svg>`` element; every name in it is escaped.
    """
    names = causal_order(paths)
    places = _places(names)
    boxes = {name: _Box(name, _wrap(labels.get(name, name)), *places[name]) for name in names}
    arrows = [_arrow(path, boxes, set(names) == set(_DIAMOND)) for path in paths]
    template = environment().get_template("paths.svg.j2")
    return Markup(  # nosec B704 # noqa: S704 - the template escapes
        template.render(
            boxes=list(boxes.values()),
            arrows=sorted(arrows, key=lambda arrow: arrow.width),
            alt=alt,
            width=_WIDTH,
            height=_HEIGHT,
            box_w=_BOX_W,
            box_h=_BOX_H,
        )
    )


def _places(names: list[str]) -> dict[str, tuple[float, float]]:
    free_x, free_y = _WIDTH - _BOX_W - 20, _HEIGHT - _BOX_H - 20
    if set(names) == set(_DIAMOND):
        unit = _DIAMOND
    else:
        turns = np.linspace(np.pi, -np.pi, len(names), endpoint=False)
        unit = {
            name: (0.5 + 0.5 * math.cos(t), 0.5 - 0.5 * math.sin(t))
            for name, t in zip(names, turns, strict=True)
        }
    return {
        name: (10 + _BOX_W / 2 + x * free_x, 10 + _BOX_H / 2 + y * free_y)
        for name, (x, y) in unit.items()
    }


def _wrap(label: str, width: int = 25) -> tuple[str, ...]:
    lines: list[str] = []
    for word in label.split():
        if lines and len(lines[-1]) + 1 + len(word) <= width:
            lines[-1] += " " + word
        else:
            lines.append(word)
    kept = [line if len(line) <= width + 2 else line[: width + 1] + "…" for line in lines[:3]]
    return tuple(kept)


def _arrow(path: Path, boxes: dict[str, _Box], diamond: bool) -> Arrow:
    a, b = boxes[path.cause], boxes[path.outcome]
    x1, y1 = _border(a, b, 2)
    x2, y2 = _border(b, a, 7)
    # Paths that cross in the middle carry their label nearer to where they start.
    crossing = diamond and (a.x == b.x or a.y == b.y)
    t = 0.27 if crossing else 0.5
    strength = min(abs(path.std), 1.0)
    css = ("up" if path.std >= 0 else "down") + ("" if path.clear else " unclear")
    return Arrow(
        path,
        x1,
        y1,
        x2,
        y2,
        x1 + t * (x2 - x1),
        y1 + t * (y2 - y1),
        1.4 + 6 * strength,
        css,
        number(path.std),
        interval(path.low, path.high) if finite(path.low) else "",
    )


def _border(box: _Box, toward: _Box, gap: float) -> tuple[float, float]:
    dx, dy = toward.x - box.x, toward.y - box.y
    scale = min(
        (_BOX_W / 2 + gap) / abs(dx) if dx else math.inf,
        (_BOX_H / 2 + gap) / abs(dy) if dy else math.inf,
    )
    return (box.x, box.y) if math.isinf(scale) else (box.x + scale * dx, box.y + scale * dy)
