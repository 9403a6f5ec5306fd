"""What a measurement found, held against its target; and how a comparison gets its ratio."""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One measured number; it is to be at most, or at least, `target`."""

    scenario: str
    what: str
    value: float
    target: float
    at_least: bool = False
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_met(self) -> bool:
        return self.value >= self.target if self.at_least else self.value <= self.target


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Return the median of the ratios of the rounds, in each of which both were measured."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def rounded(values: Sequence[float], digits: int = 1) -> list[float]:
    return [round(value, digits) for value in values]


def table(findings: Sequence[Finding]) -> str:
    """Return the findings as a Markdown table."""
    rows = [("scenario", "what", "target", "measured", "met")] + [
        (
            finding.scenario,
            finding.what,
            f"{'>=' if finding.at_least else '<='} {finding.target:g}",
            f"{finding.value:.4g}",
            "yes" if finding.is_met else "**no**",
        )
        for finding in findings
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        f"| {' | '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))} |"
        for row in rows
    ]
    lines.insert(1, f"| {' | '.join('-' * width for width in widths)} |")
    return "\n".join(lines)


def as_json(findings: Sequence[Finding], about: Mapping[str, Any]) -> str:
    results = [{**asdict(finding), "is_met": finding.is_met} for finding in findings]
    return json.dumps({"about": about, "findings": results}, indent=2)
