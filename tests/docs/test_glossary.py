"""The glossary of CONTRIBUTING.md: no word of its left column stands in the tree."""

import pytest

from support import glossary

pytestmark = pytest.mark.skipif(not glossary.tracked(), reason="not a git checkout: there is no list of the sources")


def test_no_word_of_the_left_column_is_left():
    hits = glossary.count()
    assert not any(hits.values()), f"python tests/support/glossary.py --places\n{glossary.report(hits, 5)}"


@pytest.mark.parametrize(
    ("path", "text", "counted"),
    [
        ("docs/a.md", "A picture, Pictures and picture_of", ["picture", "pictures", "picture"]),
        ("a.py", "in_planes = planes", ["planes"]),
        ("a.py", "models.load(path, network=name)  # no network", []),
        ("a.py", 'kMostStages = "most"  # most', ["most"]),
        ("csrc/a.h", "int kMostStages = 1;  // most\nint most_of, smaller;", ["most", "most", "smaller"]),
        ("lwrn_fast/a.py", "def test_the_least(places): pass", []),
        ("kernels/a.py", "places = BLOCK_DEPTH", ["places", "BLOCK_DEPTH"]),
        ("lwrn_fast/wrong.py", "", ["wrong"]),
        ("lwrn_fast/picture.py", "", ["picture"]),
        ("bench/results/a.txt", "picture", []),
    ],
)
def test_counts_what_the_table_says(path, text, counted, tmp_path, monkeypatch):
    (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / path).write_text(text)
    monkeypatch.setattr(glossary, "ROOT", tmp_path)
    monkeypatch.setattr(glossary, "tracked", lambda: [path])
    hits = {word.text: len(where) for word, where in glossary.count().items() if where}
    assert hits == {word: counted.count(word) for word in counted}


def test_the_tables_are_read():
    scopes = {word.scope for word in glossary.words()}
    assert scopes == {"text", "names", "files"}
    assert len(glossary.words()) > 30
    assert any(one.text == "in_planes" for one in glossary.exemptions())
    assert any(one.text is None for one in glossary.exemptions())
