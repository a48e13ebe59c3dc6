"""The times at which espeak-ng begins each word; its library reports them, its program does not.

The program makes the audio (`speech.speak`), since the samples of the library depend on everything it has spoken
before. For the same reason the times of words differ by a few milliseconds.
"""

import ctypes
from ctypes.util import find_library
from functools import cache

INSTALL_HINT = "espeak-ng is not installed; training needs it to speak: sudo apt-get install espeak-ng"
# Of speak_lib.h.
SYNCHRONOUS, WORD_EVENT, LAST_EVENT, CHARACTERS, UTF8 = 2, 1, 0, 1, 1
SPEED, PITCH = 1, 3


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
    """The loaded library, and the words that it began in one sentence."""

    def __init__(self) -> None:
        name = find_library("espeak-ng")
        if name is None:
            raise RuntimeError(INSTALL_HINT)
        self.library = ctypes.CDLL(name)
        rate = self.library.espeak_Initialize(SYNCHRONOUS, 0, None, 0)
        if rate <= 0:
            raise RuntimeError(f"espeak-ng cannot start (code {rate}); is its data installed?")
        self.starts: list[tuple[int, float]] = []
        self.callback = _Callback(self._record)  # a reference is needed: the library stores only the address
        self.library.espeak_SetSynthCallback(self.callback)

    def _record(self, samples, count: int, events) -> int:
        place = 0
        while events[place].type != LAST_EVENT:
            if events[place].type == WORD_EVENT:
                self.starts.append((events[place].text_position - 1, events[place].audio_position / 1000))
            place += 1
        return 0

    def speak(self, text: str, voice: str, speed: int, pitch: int) -> list[tuple[int, float]]:
        """(character, second) of every word that begins."""
        self.starts = []
        data = text.encode()
        codes = [
            self.library.espeak_SetVoiceByName(voice.encode()),
            self.library.espeak_SetParameter(SPEED, speed, 0),
            self.library.espeak_SetParameter(PITCH, pitch, 0),
            self.library.espeak_Synth(data, len(data) + 1, 0, CHARACTERS, 0, UTF8, None, None),
        ]
        if any(codes):
            raise RuntimeError(f"espeak-ng failed on {text!r} with voice {voice!r} (codes {codes})")
        return self.starts


@cache
def _engine() -> _Engine:
    return _Engine()


def word_starts(text: str, voice: str, speed: int, pitch: int) -> list[tuple[int, float]]:
    """(character, second) of every word that the engine begins; pairs like "of the" count as one word.

    Args:
        voice: "accent+variant", such as "en-us+f3".
        speed: words per minute.
        pitch: 0 to 99.

    Raises:
        RuntimeError: espeak-ng is missing, or it failed.
    """
    return _engine().speak(text, voice, speed, pitch)
