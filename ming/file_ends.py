"""Where a media file says that it ends: is it cut off, and does another file begin behind it?

Decoders read what is there and stop at the first end, without a word in both cases. What is looked at are the sizes
and end marks that the formats themselves define. MPEG program and transport streams and ADTS have none: they are known
to be cut off where they end within a packet, or within a picture of MPEG-2. Raw MPEG audio tells nothing.

MPEG audio, transport streams and Ogg may be joined freely and are read to their last part.
"""

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO

UNKNOWN_SIZES = (0, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)  # writers that cannot go back put these
TOLERANCE = 0.01  # share of a file that its size may be wrong by: writers forget padding and tags
HEAD_BYTES, TAIL_BYTES = 1 << 12, 1 << 17  # an Ogg page has at most 65,307 bytes
ASF_HEADER = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
W64_HEADER = b"riff\x2e\x91\xcf\x11"
TTA_FRAME_SECONDS = 256 / 245
PACK_START, PROGRAM_END = b"\0\0\1\xba", b"\0\0\1\xb9"
PICTURE_START, PICTURE_EXTENSION, SLICE_START = b"\0\0\1\0", b"\0\0\1\xb5", re.compile(b"\0\0\1([\1-\xaf])")
TS_PACKET = 188
ADTS_TAIL_BYTES, ADTS_FRAMES = 1 << 15, 3  # a frame has at most 8,191 bytes; as many in a row are no accident


@dataclass(frozen=True)
class Ends:
    """How a file ends.

    Args:
        stated: bytes up to the end that the file states; infinite without the end mark of its format.
        is_joined: whether another file of its kind begins there.
    """

    stated: float = 0.0
    is_joined: bool = False


def _read(file: BinaryIO, offset: int, count: int) -> bytes:
    file.seek(offset)
    return file.read(count)


def _riff(file: BinaryIO, size: int) -> Ends:
    """WAV, AVI and WebP (RIFF) and AIFF (FORM): one chunk; large AVI files go on in further ones."""
    order = ">" if _read(file, 0, 4) == b"FORM" else "<"
    end = 0
    while True:
        (length,) = struct.unpack(f"{order}I", _read(file, end + 4, 4))
        if length in UNKNOWN_SIZES:
            return Ends()
        end += 8 + length + length % 2
        behind = _read(file, end, 12)
        if len(behind) < 12 or (behind[:4], behind[8:]) != (b"RIFF", b"AVIX"):
            return Ends(end, behind[:4] in (b"RIFF", b"FORM"))


def _boxes(file: BinaryIO, size: int) -> Ends:
    """MP4, M4A and MOV: boxes, the first of which is `ftyp`."""
    offset = 0
    while len(head := _read(file, offset, 16)) >= 8:
        length, name = struct.unpack(">I4s", head[:8])
        if name == b"ftyp" and offset:
            return Ends(offset, is_joined=True)
        if length == 1 and len(head) == 16:
            (length,) = struct.unpack(">Q", head[8:])
        if length < 8:  # 0: up to the end of the file; all others are damaged
            return Ends()
        offset += length
    return Ends(offset)


def _asf(file: BinaryIO, size: int) -> Ends:
    """WMA and WMV: objects, the first of which is the header."""
    offset = 0
    while len(head := _read(file, offset, 24)) == 24:
        (length,) = struct.unpack("<Q", head[16:])
        if head[:16] == ASF_HEADER and offset:
            return Ends(offset, is_joined=True)
        if length < 24:
            return Ends()
        offset += length
    return Ends(offset)


def _au(file: BinaryIO, size: int) -> Ends:
    """A second file is not looked for: FFmpeg reads on."""
    start, length = struct.unpack(">II", _read(file, 4, 8))
    return Ends() if length in UNKNOWN_SIZES else Ends(start + length)


def _w64(file: BinaryIO, size: int) -> Ends:
    """Sony Wave64: WAV with names and sizes of 16 and 8 bytes."""
    (end,) = struct.unpack("<Q", _read(file, 16, 8))
    return Ends(end, _read(file, end, 8) == W64_HEADER)


def _caf(file: BinaryIO, size: int) -> Ends:
    """Core Audio: chunks behind a header of 8 bytes."""
    offset = 8
    while len(head := _read(file, offset, 12)) == 12:
        (length,) = struct.unpack(">q", head[4:])
        if length < 0 or head[:4] == b"caff":
            return Ends(offset, is_joined=length >= 0)
        offset += 12 + length
    return Ends(offset)


def _tta(file: BinaryIO, size: int) -> Ends:
    """A table behind the header has the bytes of all frames."""
    rate, samples = struct.unpack("<II", _read(file, 10, 8))
    frames = -(-samples // max(int(rate * TTA_FRAME_SECONDS), 1))
    table = _read(file, 22, 4 * min(frames, size // 4))
    end = 22 + len(table) + 4 + sum(struct.unpack(f"<{len(table) // 4}I", table[: len(table) // 4 * 4]))
    return Ends(end, b"TTA1" in _read(file, end, 1 << 9))  # behind tags


def _ogg(file: BinaryIO, size: int) -> Ends:
    """The last page bears a flag, and is complete."""
    tail = _read(file, max(size - TAIL_BYTES, 0), TAIL_BYTES)
    page = tail[tail.rfind(b"OggS") :]
    if len(page) < 27 or len(page) < 27 + page[26] or not page[5] & 4:
        return Ends(float("inf"))
    return Ends(size - len(page) + 27 + page[26] + sum(page[27 : 27 + page[26]]))


def _mp3(file: BinaryIO, size: int) -> Ends:
    """The first frame may be a table (Xing, Info) with the bytes of all frames."""
    start, head = 0, _read(file, 0, 10)
    if head[:3] == b"ID3" and len(head) == 10:
        start = 10 + sum((byte & 127) << shift for byte, shift in zip(head[6:], (21, 14, 7, 0), strict=True))
    frame = _read(file, start, 64)
    place = next((at for mark in (b"Xing", b"Info") if (at := frame.find(mark)) >= 0), None)
    if place is None or len(frame) < place + 16 or not frame[place + 7] & 2:
        return Ends()
    (length,) = struct.unpack_from(">I", frame, place + (12 if frame[place + 7] & 1 else 8))
    return Ends(start + length)


def _flv(file: BinaryIO, size: int) -> Ends:
    """The first tag may name the file's size."""
    head = _read(file, 0, HEAD_BYTES)
    place = head.find(b"filesize\x00")
    return Ends() if not 0 <= place <= len(head) - 17 else Ends(struct.unpack_from(">d", head, place + 9)[0])


def _gif(file: BinaryIO, size: int) -> Ends:
    """The last byte is a semicolon; some writers put zeros behind it."""
    ends = _read(file, max(size - TAIL_BYTES, 0), TAIL_BYTES).rstrip(b"\0").endswith(b";")
    return Ends() if ends else Ends(float("inf"))


def _program_stream(file: BinaryIO, size: int) -> Ends:
    """MPEG program streams, such as VOB: packs of packets, each of which has its length. An end mark is optional."""
    tail, video = _read(file, max(size - TAIL_BYTES, 0), TAIL_BYTES), b""
    place = tail.find(PACK_START)
    while 0 <= place < len(tail):
        head = tail[place : place + 14]
        if head[:4] == PACK_START and len(head) > 4:
            is_new = head[4] >> 6 == 1  # MPEG-2; packs of MPEG-1 have no stuffing
            place += 12 if not is_new else 14 + (head[13] & 7 if len(head) == 14 else 0)
        elif head[:3] == PACK_START[:3] and len(head) >= 6 and head[3] >= 0xBB:
            end = place + 6 + int.from_bytes(head[4:6], "big")
            if head[3] >> 4 == 0xE and len(head) > 8:
                video += tail[place + 9 + head[8] : end]
            place = end
        elif len(head) < 6 and PACK_START[:3].startswith(head[:3]) and head[:4] != PROGRAM_END:
            place = len(tail) + 1  # within the head of a packet
        else:  # the end mark, or what is no packet
            return Ends()
    return Ends(float("inf") if place > len(tail) or _ends_within_a_picture(video) else 0.0)


def _ends_within_a_picture(video: bytes) -> bool:
    """Whether the last picture of MPEG-2 video lacks rows that pictures of its structure (frame, field) have."""
    rows: dict[int, list[int]] = {}
    structure = None
    for picture in video.split(PICTURE_START)[1:]:
        extension = picture.find(PICTURE_EXTENSION)
        if not 0 <= extension < len(picture) - 6:
            return False  # MPEG-1, or another codec
        structure = picture[extension + 6] & 3
        rows.setdefault(structure, []).append(max((code[0] for code in SLICE_START.findall(picture)), default=0))
    return structure is not None and rows[structure][-1] < max(rows[structure])


def _transport_stream(file: BinaryIO, size: int) -> Ends:
    """MPEG transport streams: packets of 188 bytes from the first one on."""
    if any(_read(file, place, 1) != b"G" for place in range(0, min(size, 5 * TS_PACKET), TS_PACKET)):
        return Ends()
    return Ends(float("inf") if size % TS_PACKET else 0.0)


def _adts(file: BinaryIO, size: int) -> Ends:
    """AAC without a container: frames, each of which has its length and the same first bytes."""
    start = max(size - ADTS_TAIL_BYTES, 0)
    tail, mark = _read(file, start, ADTS_TAIL_BYTES), _read(file, 0, 2)
    for first in range(len(tail)):
        place, count = first, 0
        while tail[place : place + 2] == mark and place + 6 <= len(tail):
            place += max(int.from_bytes(tail[place + 3 : place + 6], "big") >> 5 & 0x1FFF, 7)
            count += 1
        if count >= ADTS_FRAMES:
            rest = tail[place:]
            is_cut = place > len(tail) or (0 < len(rest) < 7 and rest[:2] == mark[: len(rest)])
            return Ends(float("inf") if is_cut else 0.0)
    return Ends()


def _mpeg_audio(file: BinaryIO, size: int) -> Ends:
    """Raw MPEG audio, or ADTS: its layer is 0."""
    return _adts(file, size) if _read(file, 1, 1)[0] & 0xF6 == 0xF0 else _mp3(file, size)


READERS: tuple[tuple[int, bytes, Callable[[BinaryIO, int], Ends]], ...] = (
    (0, b"RIFF", _riff),
    (0, b"FORM", _riff),
    (4, b"ftyp", _boxes),
    (0, ASF_HEADER, _asf),
    (0, b".snd", _au),
    (0, b"caff", _caf),
    (0, W64_HEADER, _w64),
    (0, b"TTA1", _tta),
    (0, b"OggS", _ogg),
    (0, b"ID3", _mp3),
    (0, b"\xff", _mpeg_audio),
    (0, b"FLV", _flv),
    (0, b"GIF8", _gif),
    (0, PACK_START, _program_stream),
    (0, b"G", _transport_stream),
)


def describe_end(file: BinaryIO) -> str | None:
    """What is wrong with the end of a file, for a warning; None: nothing, or its format does not tell.

    Args:
        file: can be rewound, and is where it was afterwards.
    """
    place = file.tell()
    size = file.seek(0, 2)
    try:
        head = _read(file, 0, 16)
        reader = next((reader for at, mark, reader in READERS if head[at : at + len(mark)] == mark), None)
        ends = reader(file, size) if reader and size > 16 else Ends()
    except struct.error:  # it ends within a size
        ends = Ends(float("inf"))
    finally:
        file.seek(place)
    if ends.is_joined:
        return "holds several files one after the other, of which only the first is read; join their media instead"
    if ends.stated - size > TOLERANCE * size:
        stated = "lacks the end of its format" if ends.stated == float("inf") else f"should have {ends.stated:.0f}"
        return f"has {size} bytes and {stated}; it is probably cut off, and what is missing is not seen or heard"
    return None


__all__ = ["describe_end"]
