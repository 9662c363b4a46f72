"""Read TFRecord files with SequenceExample messages, without TensorFlow.

A record is its length (8 bytes, little endian), a masked CRC-32C of those, the message, and a masked CRC-32C of it. The
message is of the protocol buffers' wire format: https://protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

from nas_kd.data.sample import DataError

_POLYNOMIAL = 0x82F63B78  # of Castagnoli, its bits in reverse
_MASK_DELTA = 0xA282EAD8
_HEADER = struct.Struct("<QI")
_FOOTER = struct.Struct("<I")
_LANE_BYTES = 512
_PACKED = {
    b"\x1f\x8b": "gzip",
    b"\x78\x01": "zlib",
    b"\x78\x9c": "zlib",
    b"\x78\xda": "zlib",
    b"PK\x03\x04": "zip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
}
"""How a compressed file begins; TensorFlow writes TFRecords with gzip or zlib on demand."""
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class WireError(ValueError):
    """A message that is none; the reason, without the file."""


class DamagedError(DataError):
    """A record whose bytes are wrong.

    Attributes:
        reason: What is wrong, without the file.
        end: Where the next record begins; None where that cannot be known.
    """

    def __init__(self, path: Path, offset: int, reason: str, end: int | None = None) -> None:
        super().__init__(f"{path} is damaged at byte {offset}: {reason}; fetch the file again")
        self.reason, self.end = reason, end


class SequenceExample(NamedTuple):
    """The content of a record.

    Attributes:
        context: Name to its strings or its whole numbers; lists of floats are left out.
        lists: Name to the strings of each of its steps, those of frames here.
    """

    context: dict[str, list[bytes] | list[int]]
    lists: dict[str, list[list[bytes]]]


def crc32c(data: bytes) -> int:
    """CRC-32C (RFC 3720, appendix B.4) of bytes.

    The register is linear in its start and the data over GF(2). So long data are cut into lanes that numpy works
    through side by side, two bytes a step, and their registers are joined at the end.
    """
    lanes = len(data) // _LANE_BYTES
    cut = lanes * _LANE_BYTES if lanes > 1 else 0
    register = 0xFFFFFFFF
    if cut:
        words = np.frombuffer(data, dtype="<u2", count=cut // 2).reshape(lanes, -1).T.astype(np.uint32)
        registers = np.zeros(lanes, dtype=np.uint32)
        registers[0] = register
        table = _word_table()
        for column in words:
            registers = table[(registers ^ column) & 0xFFFF] ^ (registers >> 16)
        register = int(registers[0])
        first, second, third, fourth = _lane_tables()
        for lane in registers[1:].tolist():
            register = (
                first[register & 0xFF]
                ^ second[register >> 8 & 0xFF]
                ^ third[register >> 16 & 0xFF]
                ^ fourth[register >> 24]
                ^ lane
            )
    byte_table = _byte_table()
    for byte in memoryview(data)[cut:]:
        register = byte_table[(register ^ byte) & 0xFF] ^ register >> 8
    return register ^ 0xFFFFFFFF


def masked_crc32c(data: bytes) -> int:
    """The form that TFRecord files keep, since a CRC of data that contain their own CRC detects few errors."""
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + _MASK_DELTA) & 0xFFFFFFFF


def records(path: Path, damaged: list[tuple[int, str]] | None = None) -> Iterator[tuple[int, bytes]]:
    """Offset and message of each record of a file.

    Args:
        path: The file.
        damaged: Takes the offset of each damaged record and what is wrong with it; the others are still given, as far
            as it is known where they begin.

    Raises:
        DamagedError: A record is damaged, and there is no list of such; the message names the file and the offset.
        DataError: The file cannot be read, or is compressed as a whole.
    """
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            offset = 0
            while offset < size:
                try:
                    message = read_record(file, offset, size, path)
                except DamagedError as error:
                    if damaged is None:
                        raise
                    rest = " and of all behind it" if error.end is None else ""
                    damaged.append((offset, f"{error.reason}, so the content of this record{rest} is lost"))
                    if error.end is None:
                        return
                    offset = error.end
                    continue
                yield offset, message
                offset += _HEADER.size + len(message) + _FOOTER.size
    except OSError as error:
        raise DataError(f"{path} must be a TFRecord file, but it cannot be read: {error.strerror or error}") from error


def read_record(file: BinaryIO, offset: int, size: int, path: Path) -> bytes:
    """The message of one record.

    Args:
        file: The open file.
        offset: Where the record begins.
        size: Bytes of the file.
        path: Its name, for messages.

    Raises:
        DamagedError: The record is cut off or its check sums are wrong.
        DataError: The file is compressed as a whole.
    """
    file.seek(offset)
    header = file.read(_HEADER.size)
    if len(header) < _HEADER.size:
        raise DamagedError(path, offset, f"the file ends {len(header)} bytes into the record's header")
    length, crc = _HEADER.unpack(header)
    if masked_crc32c(header[:8]) != crc:
        packed = next((name for start, name in _PACKED.items() if header.startswith(start)), None)
        if offset == 0 and packed:
            raise DataError(
                f"{path} must be a TFRecord file that is not compressed, but it is by {packed}; unpack it first"
            )
        raise DamagedError(path, offset, "the check sum of the record's length is wrong")
    if offset + _HEADER.size + length + _FOOTER.size > size:
        raise DamagedError(path, offset, f"the record has {length} bytes, but the file ends before it does")
    message = file.read(length)
    footer = file.read(_FOOTER.size)
    if len(message) < length or len(footer) < _FOOTER.size:
        raise DamagedError(path, offset, "the file became shorter while it was read")
    if masked_crc32c(message) != _FOOTER.unpack(footer)[0]:
        end = offset + _HEADER.size + length + _FOOTER.size
        raise DamagedError(path, offset, "the check sum of the record is wrong", end)
    return message


def parse_sequence_example(message: bytes) -> SequenceExample:
    """The parts of a SequenceExample (tensorflow/core/example/example.proto) that hold strings and whole numbers.

    Raises:
        WireError: The message is no SequenceExample.
    """
    context: dict[str, list[bytes] | list[int]] = {}
    lists: dict[str, list[list[bytes]]] = {}
    for number, value in _messages(memoryview(message)):
        if number not in (1, 2):
            continue
        for key, part in (_entry(entry) for inner, entry in _messages(value) if inner == 1):
            if number == 1:
                context[key] = _feature(part)
            else:
                lists[key] = [_strings(step, key) for inner, step in _messages(part) if inner == 1]
    return SequenceExample(context, lists)


def _entry(entry: memoryview) -> tuple[str, memoryview]:
    """Key and value of an entry of a map."""
    key, value = "", memoryview(b"")
    for number, part in _messages(entry):
        if number == 1:
            try:
                key = bytes(part).decode()
            except UnicodeDecodeError as error:
                raise WireError("the name of a feature is no text") from error
        elif number == 2:
            value = part
    return key, value


def _feature(feature: memoryview) -> list[bytes] | list[int]:
    for number, part in _messages(feature):
        if number == 1:
            return [bytes(value) for inner, value in _messages(part) if inner == 1]
        if number == 3:
            return [number for inner, value in _fields(part) if inner == 1 for number in _integers(value)]
    return []


def _strings(feature: memoryview, key: str) -> list[bytes]:
    values: list[bytes] = []
    for number, part in _messages(feature):
        if number != 1:
            raise WireError(f"the frames of {key!r} must be strings of bytes, but are numbers")
        values += [bytes(value) for inner, value in _messages(part) if inner == 1]
    return values


def _integers(value: int | memoryview) -> Iterator[int]:
    """One whole number, or many that are packed; those are signed, of 64 bits."""
    if isinstance(value, int):
        yield value - (1 << 64) if value >> 63 else value
        return
    position = 0
    while position < len(value):
        number, position = _varint(value, position)
        yield number - (1 << 64) if number >> 63 else number


def _messages(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Number and content of each field that has a length; the others are left out."""
    for number, value in _fields(data):
        if isinstance(value, memoryview):
            yield number, value


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Number and value of each field; a view for those of a length, the bits for numbers."""
    position, end = 0, len(data)
    while position < end:
        key, position = _varint(data, position)
        kind = key & 7
        if kind == _VARINT:
            number, position = _varint(data, position)
            yield key >> 3, number
            continue
        if kind == _BYTES:
            length, position = _varint(data, position)
        elif kind in (_FIXED64, _FIXED32):
            length = 8 if kind == _FIXED64 else 4
        else:
            raise WireError(f"a field has the unknown wire type {kind}")
        if position + length > end:
            raise WireError(f"a field of {length} bytes ends behind its message")
        part = data[position : position + length]
        position += length
        yield key >> 3, part if kind == _BYTES else int.from_bytes(part, "little")


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    """A number of 7 bits a byte, the lowest first, and the position behind it."""
    result = shift = 0
    while True:
        if position >= len(data) or shift > 63:
            raise WireError("a number does not end")
        byte = data[position]
        position += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result & 0xFFFFFFFFFFFFFFFF, position
        shift += 7


@functools.cache
def _byte_table() -> list[int]:
    """The register after one byte, from 0, by byte."""
    table = []
    for register in range(256):
        for _ in range(8):
            register = register >> 1 ^ _POLYNOMIAL * (register & 1)
        table.append(register)
    return table


@functools.cache
def _word_table() -> npt.NDArray[np.uint32]:
    """The register after two bytes, from 0, by the word that they make."""
    table = np.array(_byte_table(), dtype=np.uint32)
    registers = np.arange(2**16, dtype=np.uint32)
    for _ in range(2):
        registers = table[registers & 0xFF] ^ (registers >> 8)
    return registers


@functools.cache
def _lane_tables() -> tuple[list[int], list[int], list[int], list[int]]:
    """The register after a lane of zeros, by each of its four bytes before."""
    table = _word_table()
    registers = (np.arange(256, dtype=np.uint32) << np.array([[0], [8], [16], [24]], dtype=np.uint32)).reshape(-1)
    for _ in range(_LANE_BYTES // 2):
        registers = table[registers & 0xFFFF] ^ (registers >> 16)
    first, second, third, fourth = registers.reshape(4, 256).tolist()
    return first, second, third, fourth
