"""Known vulnerabilities of what the program installs: pip-audit over requirements/runtime.lock.

    python -m tools.audit path/to/pip-audit

Exit 1 if there is one. Where the advisory service cannot be reached, or knows nothing of a package,
nothing can be told: that is said, and is no failure, for it says nothing about the program.
"""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

_LOCK: Final = Path(__file__).parent.parent / "requirements" / "runtime.lock"
_TIMEOUT: Final = 120
"""Seconds."""


@dataclass(frozen=True, slots=True)
class Audit:
    """What is known of the packages: those without a known vulnerability, and the others."""

    clean: int
    unknown: tuple[str, ...]
    vulnerable: tuple[str, ...]

    @classmethod
    def of_report(cls, report: Mapping[str, Any]) -> "Audit":
        """Read what `pip-audit --format json` wrote."""
        packages: Sequence[Mapping[str, Any]] = report["dependencies"]
        return cls(
            clean=sum(package.get("vulns") == [] for package in packages),
            unknown=tuple(package["name"] for package in packages if "skip_reason" in package),
            vulnerable=tuple(
                f"{package['name']} {package['version']}: {vulnerability['id']}"
                for package in packages
                for vulnerability in package.get("vulns", ())
            ),
        )


def audit(program: str) -> Audit | None:
    """Run pip-audit; None if it could not do its work."""
    command = [program, "--requirement", str(_LOCK), "--require-hashes", "--disable-pip"]
    try:
        done = subprocess.run(
            [*command, "--format", "json", "--progress-spinner", "off"],
            capture_output=True,
            encoding="utf-8",
            timeout=_TIMEOUT,
            check=False,
        )
        return Audit.of_report(json.loads(done.stdout))
    except (subprocess.TimeoutExpired, json.JSONDecodeError):
        return None


def main(program: str) -> int:
    """Say what was found; return the exit code."""
    found = audit(program)
    if found is None or not (found.clean or found.vulnerable):
        print("audit: not done, the advisory service cannot be reached")
        return 0
    print(f"audit: {found.clean} packages without a known vulnerability")
    if found.unknown:
        print(f"audit: nothing is known of {', '.join(found.unknown)}")
    for line in found.vulnerable:
        print(f"audit: {line}")
    return 1 if found.vulnerable else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
