"""Break the rules and the pacing on purpose, a small change at a time; the tests must notice.

`mutmut` makes the changes and runs the tests; `[tool.mutmut]` in pyproject.toml says of what. At
least `LEAST` of them must make a test fail. Those that do not are printed by function;
tests/mutation.md says for which of them that is no fault.
"""

import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

LEAST = 0.85
NOTICED = {"killed", "timeout", "segfault", "caught by type check"}
ROOT = Path(__file__).parent.parent
PAGE = ROOT / "tests" / "mutation.md"
MUTMUT = str(Path(sys.executable).with_name("mutmut"))
PROCESSES = "2"


def function_of(mutant: str) -> str:
    """`proxy.rules.refresh.xǁScheduleǁend__mutmut_2` is of `rules/refresh: Schedule.end`."""
    name = re.sub(r"__mutmut_\d+$", "", mutant).removeprefix("proxy.")
    module, _, function = name.rpartition(".")
    function = function.removeprefix("xǁ").replace("ǁ", ".")
    return f"{module.replace('.', '/')}: {function.removeprefix('x_')}"


def unnoticed(results: Iterable[str]) -> tuple[int, Counter[str]]:
    """From lines `mutant: status`: how many there are, and those nobody noticed, by function."""
    pairs = [line.strip().rpartition(": ") for line in results if "__mutmut_" in line]
    survivors = Counter(function_of(name) for name, _, status in pairs if status not in NOTICED)
    return len(pairs), survivors


def explained(page: str) -> set[str]:
    """The functions that the page has a row for."""
    return set(re.findall(r"^\| `([^`]+)` \|", page, re.MULTILINE))


def main() -> int:
    subprocess.run([MUTMUT, "run", "--max-children", PROCESSES], cwd=ROOT, check=False)
    told = subprocess.run(
        [MUTMUT, "results", "--all", "true"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    total, survivors = unnoticed(told.stdout.splitlines())
    known = explained(PAGE.read_text(encoding="utf-8"))
    for function, count in sorted(survivors.items()):
        print(f"{count:4} {function}{'' if function in known else ': no reason is given'}")
    noticed = 1 - survivors.total() / total if total else 0.0
    print(f"{total} changes, {noticed:.1%} of them noticed")
    return int(noticed < LEAST)


if __name__ == "__main__":
    sys.exit(main())
