"""What a Parquet file claims of itself, before anything is set aside for it.

pyarrow believes a file: it makes room for as many row groups as a list says it has, and for as many
bytes as the header of a page says it unpacks to. Both are read here first, from the bytes.

Source: https://github.com/apache/parquet-format, and Thrift's compact protocol, in which its footer
and its headers are written.
"""

import struct
from collections.abc import Iterator
from typing import IO, Any

MAX_FOOTER_BYTES = 2 << 20
"""A hundred bytes for each column of each row group. One of them may cost 230 in memory: 500 MB."""
MAX_IN_A_LIST = 20_000
"""Columns, row groups: a list that says it is longer is not believed."""
MAX_PAGES = 1_000_000
MAX_HEADER_BYTES = 1 << 20
"""Of one page, its statistics included."""
SLACK_TIMES, SLACK_BYTES = 2, 1 << 20
"""So much more than the footer says of a column may be in its pages: writers count differently."""
UNPACKED, PACKED = 2, 3
"""Fields of a page's header: bytes of what follows it, unpacked and as they are."""


class Unbelievable(ValueError):
    """The file claims more than it may, or other than it holds; the message says what."""


def check_footer(file: IO[bytes]) -> None:
    """Raises: Unbelievable for a footer that is too long. What is no footer is left to pyarrow."""
    size = file.seek(0, 2)
    file.seek(max(0, size - 8))
    end = file.read(8)
    file.seek(0)
    if len(end) < 8 or end[4:] not in (b"PAR1", b"PARE"):
        return
    [length] = struct.unpack("<I", end[:4])
    if length > MAX_FOOTER_BYTES:
        raise Unbelievable(
            f"its footer takes {length / 2**20:.0f} MB, more than {MAX_FOOTER_BYTES >> 20}: "
            "write it with fewer row groups and columns"
        )


def unpacked_sizes(file: IO[bytes], metadata: Any) -> list[int]:
    """Bytes that the pages of each row group unpack to, by their headers; nothing is unpacked.

    Args: metadata: pyarrow's, of this file.
    Raises: Unbelievable where the pages of a column are larger than the footer says of it.
    """
    sizes, n_pages = [], 0
    for number in range(metadata.num_row_groups):
        group, size = metadata.row_group(number), 0
        for place in range(group.num_columns):
            for unpacked in _pages(file, group.column(place)):
                size, n_pages = size + unpacked, n_pages + 1
                if n_pages > MAX_PAGES:
                    raise Unbelievable(f"it has more than {MAX_PAGES:,} pages")
        sizes.append(size)
    file.seek(0)
    return sizes


def _pages(file: IO[bytes], column: Any) -> Iterator[int]:
    """What each page of a column unpacks to."""
    at = column.data_page_offset
    if column.dictionary_page_offset:  # some writers say 0 for none
        at = min(at, column.dictionary_page_offset)
    end = at + column.total_compressed_size
    left = SLACK_TIMES * column.total_uncompressed_size + SLACK_BYTES
    while 0 <= at < end:
        file.seek(at)
        fields, length = header_of(file.read(min(MAX_HEADER_BYTES, end - at)))
        unpacked, packed = fields.get(UNPACKED, -1), fields.get(PACKED, -1)
        left -= unpacked
        if unpacked < 0 or packed < 0 or left < 0:
            raise Unbelievable(
                f"the pages of its column {column.path_in_schema} are larger than its footer says"
            )
        yield unpacked
        at += length + packed


def header_of(data: bytes) -> tuple[dict[int, int], int]:
    """Whole numbers by field of the structure that the bytes begin with, and its length.

    Raises: Unbelievable where they begin with none.
    """
    reader = _Compact(data)
    try:
        return reader.structure(), reader.at
    except IndexError as error:
        raise Unbelievable("the header of one of its pages is broken") from error


class _Compact:
    """Thrift's compact protocol, from the beginning of some bytes. What is not well formed raises
    IndexError."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def structure(self, depth: int = 0) -> dict[int, int]:
        found, field = {}, 0
        while head := self._byte():
            step = head >> 4
            field = field + step if step else self._signed()
            value = self._value(head & 15, depth)
            if value is not None:
                found[field] = value
        return found

    def _value(self, kind: int, depth: int, *, in_list: bool = False) -> int | None:
        """A value of the type `kind`; of what is no whole number, None."""
        if depth > 10:  # a header is three deep
            raise IndexError
        match kind:
            case 1 | 2:  # true, false: as a field the type says it
                self.at += in_list
            case 3:
                self.at += 1
            case 4 | 5 | 6:  # 16, 32, 64 bits
                return self._signed()
            case 7:  # a double
                self.at += 8
            case 8:  # bytes
                length = self._unsigned()
                self.at += length
            case 9 | 10:  # a list, a set
                head = self._byte()
                self._many(head >> 4 if head >> 4 < 15 else self._unsigned(), [head & 15], depth)
            case 11:  # a map
                if n := self._unsigned():
                    kinds = self._byte()
                    self._many(n, [kinds >> 4, kinds & 15], depth)
            case 12:
                self.structure(depth + 1)
            case _:
                raise IndexError
        return None

    def _many(self, n: int, kinds: list[int], depth: int) -> None:
        if n > MAX_IN_A_LIST:
            raise IndexError
        for _number in range(n):
            for kind in kinds:
                self._value(kind, depth + 1, in_list=True)

    def _byte(self) -> int:
        self.at += 1
        return self.data[self.at - 1]

    def _unsigned(self) -> int:
        value = shift = 0
        while (byte := self._byte()) > 127:
            value |= (byte & 127) << shift
            shift += 7
            if shift > 63:
                raise IndexError
        return value | byte << shift

    def _signed(self) -> int:
        value = self._unsigned()
        return (value >> 1) ^ -(value & 1)
