"""What the site builder (mkdocs.yml) needs beyond Markdown: files outside docs/, and lists as GitHub reads them."""

import re
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
# Pages that stand at the root of the repository, and become pages of the site.
ROOT_PAGES = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")
FENCE = re.compile(r"^(```+|~~~+).*?^\1[ \t]*$", re.M | re.S)
LINK = re.compile(r"(\[(?:[^\[\]]|\[[^\]]*\])*\])\(((?!\w+:|#)[^)\s]+)\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages of the root, under repository/."""
    for name in ROOT_PAGES:
        text = (ROOT / name).read_text(encoding="utf-8")
        files.append(File.generated(config, f"repository/{name}", content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Links that work in the repository work on the site, and a list may follow a paragraph without a blank line."""
    uri = PurePosixPath(page.file.src_uri)
    at_root = uri.parts[0] == "repository"
    home = ROOT if at_root else (ROOT / "docs" / uri).parent

    def target(match: re.Match[str]) -> str:
        text, link = match.groups()
        path, _, anchor = link.partition("#")
        inside = (home / path).resolve()
        inside = inside.relative_to(ROOT)
        if inside.parts[:1] == ("docs",):
            place = PurePosixPath(*inside.parts[1:])
        elif str(inside) in ROOT_PAGES:
            place = PurePosixPath("repository", inside)
        else:  # source code, which is not on the site
            return text[1:-1]
        up = "../" * (len(uri.parts) - 1)
        return f"{text}({up}{place}{'#' + anchor if anchor else ''})"

    parts, end = [], 0
    for fence in [*FENCE.finditer(markdown), None]:
        prose = markdown[end : fence.start() if fence else None]
        prose = LINK.sub(target, prose)
        prose = re.sub(r"^(?!\s*(?:[-*|]|\d+\. )|\s*$)(.*)\n(?=(?:[-*]|\d+\.) )", r"\1\n\n", prose, flags=re.M)
        parts += [prose, fence.group() if fence else ""]
        end = fence.end() if fence else end
    return "".join(parts)
