"""What spoken chats said, under the ids of their audio: a later request names a reply of its history by the id."""

import threading
import time
from collections import OrderedDict


class SpokenReplies:
    """Transcripts of the latest replies, for a while, in memory alone. Used by several threads.

    Args:
        most: replies that are kept; the oldest gives way.
        seconds: how long one is kept.
    """

    def __init__(self, most: int, seconds: float):
        self.most, self.seconds = most, int(seconds)
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, tuple[str, int]] = OrderedDict()

    def keep(self, name: str, transcript: str, expires_at: int) -> None:
        """Keep the transcript of a reply until a second (Unix time), unless that has passed."""
        now = time.time()
        if expires_at <= now:
            return
        with self._lock:
            self._kept[name] = (transcript, expires_at)
            while self._kept and (len(self._kept) > self.most or next(iter(self._kept.values()))[1] <= now):
                self._kept.popitem(last=False)

    def find(self, name: str) -> str | None:
        """The transcript of a reply; None where it is not known, or not any more."""
        with self._lock:
            transcript, expires_at = self._kept.get(name, ("", 0))
        return transcript if time.time() < expires_at else None


__all__ = ["SpokenReplies"]
