"""The log of a program: its bytes, complete and in order, bounded, and never a reason for the program to fail."""

from __future__ import annotations

import fcntl
import os

_PIECE_BYTES = 1 << 20
_PIECES_PER_TURN = 8


class ProgramLog:
    """``descriptor``: log.txt, opened to append. ``truncated``: bytes were dropped (cap reached, disk full)."""

    def __init__(self, descriptor: int, max_bytes: int) -> None:
        self.descriptor = descriptor
        self.truncated = False
        self._room = max(0, max_bytes - os.fstat(descriptor).st_size)
        self._at_line_start = True
        self._capped = False
        self._max_bytes = max_bytes

    def pump(self, source: int, *, until_empty: bool = False) -> bool:
        """Move what a non-blocking pipe holds into the log; False at its end of file.

        It returns after some MiB, so that a program which never stops printing can not keep the wrapper from its
        other duties, unless ``until_empty``.
        """
        turns = 0
        while until_empty or turns < _PIECES_PER_TURN:
            try:
                piece = os.read(source, _PIECE_BYTES)
            except BlockingIOError:
                return True
            if not piece:
                return False
            self._write(piece)
            turns += 1
        return True

    def say(self, message: str) -> None:
        """A line of the platform's own. It goes beyond the cap, never beyond the disk."""
        line = f"[clavier] {message}\n".encode()
        self._append(line if self._at_line_start else b"\n" + line)
        self._at_line_start = True

    def close(self) -> None:
        """Make the log durable as far as the disk lets us."""
        try:
            os.fsync(self.descriptor)
        except OSError:
            self.truncated = True
        os.close(self.descriptor)

    def _write(self, piece: bytes) -> None:
        fitting = piece[: self._room]
        if fitting:
            self._room -= len(fitting)
            self._append(fitting)
            self._at_line_start = fitting.endswith(b"\n")
        if len(fitting) < len(piece):
            self.truncated = True
            if not self._capped:
                self._capped = True
                self.say(f"the log is full ({self._max_bytes >> 20} MiB); what follows is dropped")

    def _append(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self.descriptor, view) :]
            except OSError:  # disk full, quota: the program goes on, the result tells
                self.truncated = True
                return


def widen(pipe: int) -> None:
    """Let a pipe hold 1 MiB, so that a program seldom waits for the log; smaller where the host does not allow it."""
    try:
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIECE_BYTES)
    except PermissionError:
        return
