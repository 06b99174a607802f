"""Which of several processes of one host does what only one may do."""

from __future__ import annotations

import os
import sys
from pathlib import Path

if sys.platform != "win32":
    import fcntl


class Election:
    """One lock on one file, which the operating system gives to another when its holder ends,
    however it ends.

    On Windows there is no such lock and one process by itself: it always wins.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: int | None = None
        self._held = False

    def won(self) -> bool:
        """Whether this process has the lock now; it is tried for, and never waited for.

        Raises OSError where the file or the folders above it cannot be made.
        """
        if not self._held:
            if self._file is None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
            self._held = _lock(self._file)
        return self._held

    def close(self) -> None:
        """Let another win; asked again, this one stands again."""
        file, self._file, self._held = self._file, None, False
        if file is not None:
            os.close(file)


def _lock(file: int) -> bool:
    if sys.platform == "win32":
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
