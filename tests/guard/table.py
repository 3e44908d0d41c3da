"""docs/bad_inputs.md, made of the rules and of what their cases saw.

Write it with ``python -m tests.guard.table``.
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path

from scalebrain.io.guard import RULES
from tests.guard import files, images, people, scans  # noqa: F401  (register the cases)
from tests.guard.inputs import CASES, Lab, short

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "bad_inputs.md"

_HEAD = """\
# Bad and odd inputs

<!-- Made by the tests. Change scalebrain/io/guard.py or tests/guard, then run:
     python -m tests.guard.table -->

One bad scan does not stop an ingest. Every file is read in full and checked; a subject that
cannot be used is left out with a code and a reason, and everyone else is ingested as if it were
not there. Nothing is repaired or guessed without a word.

- `STORE/ingest/rejected.tsv` lists everyone who was left out, `STORE/ingest/warnings.tsv`
  whatever is odd but was kept. Columns: dataset, subject, code, rule, file, message.
- `scalebrain.problems(store)` and `scalebrain.problems(store, "warnings")` read them as tables.
  In the store, the variable `warnings` holds the codes of each subject.
- `scalebrain validate SOURCE` does every check and writes nothing; it prints a line a problem.
- Exit code 3 of `ingest` and `validate`: some subjects were rejected. `ingest --strict` stops
  with exit code 1 instead, and lists all of them; the store is then not finished.
- When nobody is usable, or a table is not usable as a whole, nothing is ingested (exit code 1).
- Correct the files, then run the same `ingest` with `--update`: only what changed is read again.

The table has a row for every rule. **E**: the subject is rejected (or, for a whole table, an
atlas or a model, the command stops). **W**: kept, with a line in `warnings.tsv`. **D**: handled
as described. The last column is a message of a test, its paths cut, or what the store then holds.
Rows 52 to 60 are of `scalebrain preprocess`, which has its own `OUT/problems.tsv`; rows 58 and 59
are of the ingest, too.

| # | Code | Action | Input | What happens | Message or result |
|-|-|-|-|-|-|
"""


def _cell(text: str) -> str:
    """Text as a cell of a Markdown table."""
    for plain, escaped in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("|", "\\|")):
        text = text.replace(plain, escaped)
    return text


def render(messages: Mapping[str, str]) -> str:
    """Make the document.

    Parameters
    ----------
    messages
        What the case of each code gave.

    Returns
    -------
    str
        Markdown.
    """
    rows = [
        (str(rule.row), f"`{rule.code}`", rule.action, rule.input, rule.behavior, messages[code])
        for code, rule in sorted(RULES.items(), key=lambda item: item[1].row)
    ]
    lines = [f"|{'|'.join(_cell(short(cell)) for cell in row)}|\n" for row in rows]
    return _HEAD + "".join(lines)


def main() -> None:
    """Run every case and write the document."""
    with tempfile.TemporaryDirectory() as folder:
        lab = Lab(Path(folder))
        messages = {code: case(lab) for code, case in CASES.items()}
    DOCUMENT.write_text(render(messages), encoding="utf-8")


if __name__ == "__main__":
    main()
