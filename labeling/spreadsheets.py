"""Texts that a spreadsheet would compute: guarded by apostrophes in tables, and read back without.

A reader that takes another sign than the comma for the end of a cell begins a new one in the midst
of a text, and a formula may wait there; so may it after a line break. See OWASP, CSV injection.
"""

import re

SIGNS = "=+@＝＋－＠-"
"""What makes a spreadsheet take a cell for a formula."""
# Apostrophes that stand there already are told from ours: each such place gets one more.
_BEFORE_A_FORMULA = rf"(?='*(?:\"*[{SIGNS}]))"
_AT_THE_START = rf"(?='*(?:\"*[{SIGNS}]|[\t\r\n]))"
_ENDS_A_CELL = r"(?<=[;,\t\r\n])"
_OPEN = re.compile(
    rf"\A(?=\"*[{SIGNS}]|[\t\r\n])|{_ENDS_A_CELL}(?=\"*[{SIGNS}])"  # no apostrophe before it
)
_PLACES = re.compile(rf"\A{_AT_THE_START}|{_ENDS_A_CELL}{_BEFORE_A_FORMULA}")
_GUARDS = re.compile(rf"\A'{_AT_THE_START}|{_ENDS_A_CELL}'{_BEFORE_A_FORMULA}")
EVERYWHERE = "*"
"""After the name of a cell: guarded within, too. An older version guarded its beginning alone."""


def guarded(text: str) -> str:
    """The text with an apostrophe at each place from which on it would be computed; one whose own
    apostrophes guard it stays as it is."""
    return _PLACES.sub("'", text) if _OPEN.search(text) else text


def guards_in(names: list[str]) -> str:
    """What the column `guarded` says of a row: the cells that `guarded` changed."""
    return " ".join(name + EVERYWHERE for name in names)


def unguarded(row: dict[str, str]) -> dict[str, str]:
    """A row as it was before: what `guarded` put in is out, every other apostrophe stays."""
    names = row.get("guarded", "").split()
    if not names or not all(_GUARDS.search(row.get(n.removesuffix(EVERYWHERE), "")) for n in names):
        return row
    found = {name: cell for name, cell in row.items() if name != "guarded"}
    for name in names:
        cell = name.removesuffix(EVERYWHERE)
        found[cell] = found[cell][1:] if cell == name else _GUARDS.sub("", found[cell])
    return found
