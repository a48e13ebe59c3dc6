"""espeak-ng as a library: the audio of a sentence, and the times at which its words begin.

The package espeakng-loader carries the library and its voices, so nothing has to be installed on the machine. Audio
is made by this file as a program of its own, one process a sentence: the samples of the library depend on everything
that it has spoken before in a process. For the same reason times of words, which are taken in this process, differ by
a few milliseconds.
"""

import ctypes
import json
import subprocess
import sys
from functools import cache
from importlib.util import find_spec

INSTALL_HINT = "espeak-ng is not installed; training needs it to speak: pip install espeakng-loader"
MAX_SECONDS_PER_CALL = 60
# Of speak_lib.h.
SYNCHRONOUS, WORD_EVENT, LAST_EVENT, CHARACTERS, UTF8 = 2, 1, 0, 1, 1
SPEED, PITCH = 1, 3
SEED = 1


class _Event(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),  # of the first character, counted from 1
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),  # milliseconds
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", ctypes.c_char * 8),
    ]


_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


class _Engine:
    """The loaded library, and what it made of one sentence: PCM of 16 bits, and the words that it began."""

    def __init__(self, library: str, data: str) -> None:
        self.library = ctypes.CDLL(library)
        self.rate = self.library.espeak_Initialize(SYNCHRONOUS, 0, data.encode(), 0)
        if self.rate <= 0:
            raise RuntimeError(f"espeak-ng cannot start (code {self.rate}); is its data in {data}?")
        self.library.espeak_ng_SetRandSeed(ctypes.c_long(SEED))  # starting it took the clock as the seed of its noise
        self.samples = bytearray()
        self.starts: list[tuple[int, float]] = []
        self.callback = _Callback(self._record)  # a reference is needed: the library stores only the address
        self.library.espeak_SetSynthCallback(self.callback)

    def _record(self, samples, count: int, events) -> int:
        if count > 0:
            self.samples += ctypes.string_at(samples, 2 * count)
        place = 0
        while events[place].type != LAST_EVENT:
            if events[place].type == WORD_EVENT:
                self.starts.append((events[place].text_position - 1, events[place].audio_position / 1000))
            place += 1
        return 0

    def speak(self, text: str, voice: str, speed: int, pitch: int) -> None:
        """Make `samples` and `starts`, which are (character, second) of every word that begins."""
        self.samples, self.starts = bytearray(), []
        data = text.encode()
        codes = [
            self.library.espeak_SetVoiceByName(voice.encode()),
            self.library.espeak_SetParameter(SPEED, speed, 0),
            self.library.espeak_SetParameter(PITCH, pitch, 0),
            self.library.espeak_Synth(data, len(data) + 1, 0, CHARACTERS, 0, UTF8, None, None),
        ]
        if any(codes):
            raise RuntimeError(f"espeak-ng failed on {text!r} with voice {voice!r} (codes {codes})")


def raise_if_missing() -> None:
    """Raise a RuntimeError that names the remedy if the package with the library is not installed."""
    if find_spec("espeakng_loader") is None:
        raise RuntimeError(INSTALL_HINT)


def _paths() -> tuple[str, str]:
    """Library and voices of the installed package."""
    raise_if_missing()
    import espeakng_loader

    return espeakng_loader.get_library_path(), espeakng_loader.get_data_path()


@cache
def _engine() -> _Engine:
    return _Engine(*_paths())


def synthesise(text: str, voice: str, speed: int, pitch: int) -> tuple[bytes, int]:
    """Little-endian PCM of 16 bits, mono, and its rate in Hz; the same arguments give the same bytes.

    Args:
        voice, speed, pitch: see `word_starts`.

    Raises:
        RuntimeError: espeak-ng is missing, or it failed.
    """
    order = json.dumps([*_paths(), text, voice, speed, pitch])
    command = [sys.executable, "-I", "-S", __file__]  # nothing but the standard library is needed there
    # This file, by this Python, without a shell.
    result = subprocess.run(  # nosec B603
        command, input=order.encode(), capture_output=True, timeout=MAX_SECONDS_PER_CALL, check=False
    )
    if result.returncode:
        message = result.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise RuntimeError(f"espeak-ng failed on {text!r} with voice {voice!r}: {''.join(message)}")
    return result.stdout[4:], int.from_bytes(result.stdout[:4], "little")


def word_starts(text: str, voice: str, speed: int, pitch: int) -> list[tuple[int, float]]:
    """(character, second) of every word that the engine begins; pairs like "of the" count as one word.

    Args:
        voice: "accent+variant", such as "en-us+f3".
        speed: words per minute.
        pitch: 0 to 99.

    Raises:
        RuntimeError: espeak-ng is missing, or it failed.
    """
    engine = _engine()
    engine.speak(text, voice, speed, pitch)
    return engine.starts


def main() -> None:
    """The program behind `synthesise`: its order comes as JSON on stdin; rate and PCM go to stdout."""
    library, data, *order = json.loads(sys.stdin.buffer.read())
    engine = _Engine(library, data)
    engine.speak(*order)
    sys.stdout.buffer.write(engine.rate.to_bytes(4, "little") + bytes(engine.samples))


if __name__ == "__main__":
    main()
