"""Clone the frameworks of versions.toml into a folder: python fetch.py FOLDER."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

VERSIONS = Path(__file__).parent / "versions.toml"


def git(*arguments: str, folder: Path) -> str:
    return subprocess.run(
        ["git", "-C", str(folder), *arguments], check=True, text=True, stdout=subprocess.PIPE
    ).stdout


def fetch(name: str, framework: dict, folder: Path) -> None:
    """Clone without the files of other commits, or move a clone of another commit to this one."""
    checkout, commit = folder / name, framework["commit"]
    if checkout.is_dir() and not (checkout / ".git").exists():
        print(f"{checkout} is no clone; it is used as it is")
        return
    if not checkout.is_dir():
        print(f"cloning {name} {framework['version']}")
        git("clone", "--quiet", "--filter=blob:none", "--no-checkout", framework["repository"], name, folder=folder)
    elif git("rev-parse", "HEAD", folder=checkout).strip() == commit:
        return
    else:
        git("fetch", "--quiet", "origin", commit, folder=checkout)
    git("checkout", "--quiet", "--detach", commit, folder=checkout)


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    for name, framework in tomllib.loads(VERSIONS.read_text(encoding="utf-8")).items():
        if "commit" in framework:
            fetch(name, framework, target)
