"""The table of docs/integrations/README.md, what was tested against what: python tests/docs/tested_page.py writes it.

Rows come from docs/integrations/tested.json, which the tests write (tests/tested.py); a framework without one that
tests/integrations tests against a stand-in is listed as such.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from tested import ROOT, ROWS, read_rows

PAGE = ROWS.parent / "README.md"
STAND_INS = ROOT / "tests" / "integrations" / "test_integrations.py"
MARK = re.compile(r"(?<=<!-- tested -->\n).*?(?=<!-- end -->)", re.S)
TITLES = {
    "trl": "TRL",
    "verl": "verl",
    "vllm": "vLLM",
    "skyrl": "SkyRL",
    "ms-swift": "ms-swift",
    "prime-rl": "prime-rl",
    "slime": "slime",
    "nemo-rl": "NeMo-RL",
}


def rows() -> Iterator[list[str]]:
    """Raises ValueError for a framework that was not tested in any way."""
    recorded = read_rows()
    stand_ins = re.findall(r'stand_in\(\s*"(\w+)"', STAND_INS.read_text(encoding="utf-8"))
    for framework, title in TITLES.items():
        found = sorted(recorded.get(framework, {}).items())
        for suite, row in found:
            version = f"{row['version']}, commit {row['commit'][:7]}" if "commit" in row else row["version"]
            yield [title, version, f"`{suite}`", str(row["passed"]), row["date"]]
        if not found:
            if framework.replace("-", "_") not in stand_ins:
                raise ValueError(
                    f"{title}: no row in {ROWS.name} and no stand-in; pytest SUITE --record writes the row"
                )
            yield [title, "a stand-in with its signatures", "`tests/integrations`", "", ""]


def rendered(page: str) -> str:
    """The page with its table as it should be."""
    lines = [["framework", "tested against", "by", "tests passed", "on"], ["---"] * 5, *rows()]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return MARK.sub(f"\n{table}\n\n", page)


if __name__ == "__main__":
    PAGE.write_text(rendered(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    sys.stdout.write(f"{PAGE}\n")
