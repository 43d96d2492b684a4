"""Prompts that say nearly the same: MinHash and locality-sensitive hashing, every hit verified.

Numbers and texts only, no rows. The library (datasketch, extra `stats`) is imported where it is
needed: the web process does without it.
"""

import re
from array import array
from collections.abc import Callable, Container, Iterable, Iterator, Mapping

N_HASHES = 128
MISSED = 0.001
"""Chance at most that a pair of exactly the asked likeness is not even looked at."""
WORDS_IN_A_ROW = 3
FEW = 50
"""So many that fall together are held each against each."""
REPRESENTATIVES = 8
AT_ONCE = 500
# A word, or one character of a script that is written without blanks.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|\w+")


def shingles(text: str) -> frozenset[str]:
    """Every three words in a row, lower case, without punctuation; of a shorter text its words."""
    words = _WORD.findall(text.lower())
    if len(words) < WORDS_IN_A_ROW:
        return frozenset([" ".join(words)])
    starts = range(len(words) - WORDS_IN_A_ROW + 1)
    return frozenset(" ".join(words[start : start + WORDS_IN_A_ROW]) for start in starts)


def jaccard(one: frozenset[str], other: frozenset[str]) -> float:
    """Shared shingles among all of both: 1 for the same, 0 for nothing in common."""
    shared = len(one & other)
    return shared / (len(one) + len(other) - shared)


def rows_of_a_band(threshold: float) -> int:
    """The most rows a band may have so that two prompts this alike fall together in one of them.

    The chance to miss a pair of likeness s with b bands of r rows is (1 − s^r)^b.
    Source: Leskovec, Rajaraman & Ullman, Mining of Massive Datasets, section 3.4.2.
    """
    fitting = [
        rows
        for rows in range(1, N_HASHES + 1)
        if (1 - threshold**rows) ** (N_HASHES // rows) <= MISSED
    ]
    return max(fitting)


class Sketches:
    """The MinHash bands of many texts: 8 bytes for each band, the texts themselves are not kept.

    Raises: ValueError where datasketch is not installed.
    """

    def __init__(self, threshold: float) -> None:
        try:
            from datasketch import MinHash
        except ModuleNotFoundError:
            raise ValueError(
                "near-duplicate prompts are found with datasketch, which is not installed here: "
                "pip install '.[stats]', or near_duplicates=0"
            ) from None
        self._empty = MinHash(N_HASHES)
        self.threshold = threshold
        self.n_rows = rows_of_a_band(threshold)
        self.n_bands = N_HASHES // self.n_rows
        self.keys: list[str] = []
        self._bands = array("q")

    def add(self, key: str, text: str) -> None:
        sketch = self._empty.copy()
        sketch.update_batch([part.encode() for part in shingles(text)])
        self.keys.append(key)
        for band in range(self.n_bands):
            rows = sketch.hashvalues[band * self.n_rows : (band + 1) * self.n_rows]
            self._bands.append(hash(rows.tobytes()))

    def fallen_together(self) -> Iterator[list[str]]:
        """Groups of keys that share a band: candidates, still to be verified."""
        import numpy as np

        if not self.keys:
            return
        bands = np.frombuffer(self._bands, dtype=np.int64).reshape(-1, self.n_bands)
        seen: set[tuple[int, ...]] = set()
        for band in bands.T:
            order = np.argsort(band, kind="stable")
            starts = np.flatnonzero(np.diff(band[order], prepend=band[order][:1] - 1))
            for start, end in zip(starts, [*starts[1:], len(order)], strict=True):
                if end - start > 1:
                    group = tuple(sorted(order[start:end].tolist()))
                    if group not in seen:
                        seen.add(group)
                        yield [self.keys[place] for place in group]

    def alike(
        self, texts_of: Callable[[Iterable[str]], Mapping[str, str]]
    ) -> Iterator[tuple[str, str, float]]:
        """(key, earlier key, Jaccard index) of pairs that are as alike as asked, each verified on
        the texts: as many as it takes to hold together what hangs together.

        Where more than `FEW` fall together, a key is held against the first `REPRESENTATIVES` that
        are unlike each other, else against each.

        Args: texts_of: the texts of some keys.
        """
        groups = Groups()
        for group in self.fallen_together():
            is_small = len(group) <= FEW
            if not is_small:  # one of each group that is known already
                group = list({groups.root(key): key for key in reversed(group)}.values())[::-1]
            if len({groups.root(key) for key in group}) == 1:
                continue
            kept: list[tuple[str, frozenset[str]]] = []
            for start in range(0, len(group), AT_ONCE):
                texts = texts_of(group[start : start + AT_ONCE])
                for key in group[start : start + AT_ONCE]:
                    own, is_alike = shingles(texts[key]), False
                    for earlier, other in kept:
                        if groups.root(key) == groups.root(earlier):
                            continue
                        likeness = jaccard(own, other)
                        if likeness >= self.threshold:
                            groups.unite(key, earlier)
                            is_alike = True
                            yield key, earlier, likeness
                    if is_small or (not is_alike and len(kept) < REPRESENTATIVES):
                        kept.append((key, own))

    def alike_to(
        self, others: Container[str], texts_of: Callable[[Iterable[str]], Mapping[str, str]]
    ) -> Iterator[tuple[str, str, float]]:
        """(key, one of the others, Jaccard index) of pairs that are as alike as asked, verified; of
        the others that fall together the first few are held against."""
        found: set[tuple[str, str]] = set()
        for group in self.fallen_together():
            held = [key for key in group if key in others][:REPRESENTATIVES]
            mine = [key for key in group if key not in others] if held else []
            texts = texts_of([*held, *mine]) if mine else {}
            parts = {key: shingles(text) for key, text in texts.items()}
            for key in mine:
                for other in held:
                    likeness = jaccard(parts[key], parts[other])
                    if likeness >= self.threshold and (key, other) not in found:
                        found.add((key, other))
                        yield key, other, likeness


class Groups:
    """What hangs together, by its smallest member (union-find)."""

    def __init__(self) -> None:
        self._above: dict[str, str] = {}

    def root(self, key: str) -> str:
        while (above := self._above.get(key, key)) != key:
            self._above[key] = self._above.get(above, above)
            key = self._above[key]
        return key

    def unite(self, one: str, other: str) -> None:
        first, second = sorted((self.root(one), self.root(other)))
        self._above[second] = first

    def members(self) -> dict[str, str]:
        """The smallest of its group, for each member of one with two or more."""
        keys = {*self._above, *self._above.values()}
        return {key: self.root(key) for key in sorted(keys)}


def clusters(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """For each member of a pair, the smallest of all that hang together with it."""
    groups = Groups()
    for one, other in pairs:
        groups.unite(one, other)
    return groups.members()
