"""bandpo explore"""

import pytest


def test_explore_writes_the_page_once(bandpo, tmp_path):
    assert "wrote page.html" in bandpo("explore", "--export", "page.html")
    first = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert first.startswith("<!DOCTYPE html>")
    assert first.rstrip().endswith("</html>")
    with pytest.raises(ValueError, match=r"page\.html', which exists; allowed is a name that is free"):
        bandpo("explore", "--export", "page.html")
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == first


def test_explore_refuses_a_missing_directory(bandpo):
    with pytest.raises(ValueError, match="'no' is no directory"):
        bandpo("explore", "--export", "no/page.html")
