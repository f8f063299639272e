"""Words that the repository does not use."""

from __future__ import annotations

import re

from source_files import text, tracked

PROSE = {".py", ".md", ".yaml", ".smk", ".rst", ".j2", ".json"}
# The noun that stands for a paper; the function and the verb are no matter.
NOUN = re.compile(r"\b(from|the|in|of|as|paper's|papers') print\b(?! *\()", re.IGNORECASE)


def test_a_paper_is_called_the_paper():
    found = {str(path): NOUN.findall(text(path)) for path in tracked() if path.suffix in PROSE}
    assert not {path: words for path, words in found.items() if words}
