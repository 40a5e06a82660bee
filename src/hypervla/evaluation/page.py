"""Pages that need nothing but themselves: templates of one look, and how numbers are written in them."""

from __future__ import annotations

import base64
from typing import Any

from hypervla.contracts import UserError
from hypervla.evaluation.intervals import Interval

UNKNOWN = "–"


def render(template: str, **values: Any) -> bytes:
    """The page of a template beside this file, light and dark. Raises UserError without Jinja."""
    try:
        import jinja2
        from markupsafe import Markup, escape
    except ModuleNotFoundError as error:
        raise UserError("The report needs Jinja: pip install 'hypervla[report]'.") from error
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("hypervla", "evaluation"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "breakable": lambda name: Markup(str(escape(name)).replace("_", "_<wbr>")),
        "percent": percent,
        "span": span,
        "ms": milliseconds,
        "seconds": seconds,
        "figure": figure,
        "probability": probability,
        "data": data_uri,
    }
    return environment.get_template(template).render(**values).encode()


def percent(share: float) -> str:
    """0.975 as "97.5 %", 0.9 as "90 %"."""
    return f"{100 * share:.1f}".removesuffix(".0") + " %"


def span(interval: Interval) -> str:
    return f"{100 * interval.low:.0f}–{100 * interval.high:.0f} %"


def milliseconds(seconds: float) -> str:
    """Three digits that matter, without the unit."""
    value = 1000 * seconds
    return f"{value:.0f}" if value >= 99.5 else f"{value:.1f}" if value >= 9.95 else f"{value:.2f}"


def seconds(value: float | None) -> str:
    """0.7375 as "0.74 s", 12.34 as "12.3 s"."""
    return UNKNOWN if value is None else f"{value:.1f} s" if value >= 9.995 else f"{value:.2f} s"


def figure(value: float | None) -> str:
    """Two decimals, with the minus sign that is as wide as a digit."""
    return UNKNOWN if value is None else f"{value:.2f}".replace("-", "−")


def probability(value: float) -> str:
    """0.0312 as "= 0.031", what is smaller than a thousandth as "< 0.001"."""
    return f"= {value:.3f}" if value >= 0.001 else "< 0.001"


def data_uri(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
