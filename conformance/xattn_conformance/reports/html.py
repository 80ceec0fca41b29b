"""The report as one self-contained page: no network, CSS and JS inside, the cases in one JSON block."""

from __future__ import annotations

import math
from importlib import resources
from typing import Any
from urllib.parse import urlencode

import jinja2
import msgspec
from markupsafe import Markup

from xattn_conformance.reports import histogram
from xattn_conformance.reports.claims import PROVENANCE, advice, claims
from xattn_conformance.reports.junit import reason_text
from xattn_conformance.reports.tally import ALL, STATUSES, matrix, nearest, nearness, required, share, tally
from xattn_conformance.result import CaseResult, Check, Heat, Report


def html(report: Report) -> str:
    """The page. Its fragment filters the table: "#status=FAIL&q=window&dtype=bfloat16&feature=gqa"."""
    counts = tally(report.cases)
    return _template().render(
        report=report,
        claims=claims(report),
        advice=advice(report),
        provenance=PROVENANCE[report.provenance],
        counts={status: count for status, count in counts.items() if count},
        statuses=STATUSES,
        matrix=matrix(report),
        features=list(dict.fromkeys(feature for feature, _ in matrix(report))),
        all=ALL,
        charts=histogram.charts(report),
        chart=histogram,
        rows=_json([_row(result) for result in sorted(report.cases, key=_order)]),
        style=_asset("page.css"),
        script=_asset("page.js"),
    )


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("xattn_conformance.reports", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["fragment"] = lambda words: "#" + urlencode(words)
    environment.filters["number"] = lambda value: "not finite" if value is None else f"{value:.4g}"
    environment.globals |= {"required": required, "share": share}
    return environment.get_template("template.html.jinja")


def _asset(name: str) -> Markup:
    return Markup(resources.files(__package__).joinpath(name).read_text(encoding="utf-8"))


def _json(value: Any) -> Markup:
    """JSON that cannot end the script element that it stands in, nor open a comment there."""
    return Markup(msgspec.json.encode(value).decode().replace("<", "\\u003c"))


def _order(result: CaseResult) -> tuple[int, float]:
    """Failures first; among equals, what is nearest to its limit."""
    check = nearest(result)
    return STATUSES.index(result.status), 0.0 if check is None else -nearness(check)


def _row(result: CaseResult) -> dict[str, Any]:
    """What the page shows of a case; what is empty is left out. The id holds op, title, dtype, sizes and family."""
    check = nearest(result)
    row = {
        "id": result.id,
        "status": result.status,
        "level": result.case.level,
        "features": result.case.features,
        "variations": result.case.variations,
        "provenance": result.provenance,
        "nearest": None if check is None else [check.name, _near(check)],
        "checks": [_check(check) for check in result.checks],
        "kernel": result.kernel,
        "message": result.message,
        "detail": result.detail,
        "reasons": [reason_text(reason) for reason in result.reasons],
        "worst": result.worst,
        "heat": None if result.heat is None else _heat(result.heat),
        "seconds": float(f"{result.seconds:.3g}"),
        "reproduce": result.reproduce,
    }
    return {name: value for name, value in row.items() if value not in (None, "", (), [])}


def _check(check: Check) -> list[Any]:
    """[name, value, limit, ok, waiver if any]; null for a value that is not finite."""
    value = None if check.value is None else float(f"{check.value:.5g}")
    return [check.name, value, float(f"{check.limit:.5g}"), int(check.ok), *([check.waiver] if check.waiver else [])]


def _near(check: Check) -> float | None:
    near = nearness(check)
    return float(f"{near:.4g}") if math.isfinite(near) else None


def _heat(heat: Heat) -> dict[str, Any]:
    """Cells in whole hundredths of the limit, which is half of a page of many cases."""
    cells = [[None if cell is None else round(100 * cell) for cell in line] for line in heat.cells]
    return {"rows": heat.rows, "heads": heat.heads, "cells": cells}
