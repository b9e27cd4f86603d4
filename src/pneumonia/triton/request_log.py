"""The opt-in log of answered requests: one JSON line an image, without the image or any name of it."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
from typing import Any

from pneumonia import contract


class RequestLog:
    """Appends to the file that contract.REQUEST_LOG_ENV names; does nothing where it names none.

    A line is one write, so that several processes can share the file. The request's own id is left out: senders put
    accession numbers there. Raises OSError where the file cannot be opened.
    """

    def __init__(self, model_id: str) -> None:
        path = os.environ.get(contract.REQUEST_LOG_ENV)
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o640) if path else None
        self._model_id = model_id

    def write(self, **fields: Any) -> None:
        """One line: time in UTC, model_id and `fields`."""
        if self._file is None:
            return
        now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="milliseconds")
        line = json.dumps({"time": now, "model_id": self._model_id, **fields}) + "\n"
        with contextlib.suppress(OSError):  # A full disk must not fail the answer; the gap in the file is what tells.
            os.write(self._file, line.encode())
