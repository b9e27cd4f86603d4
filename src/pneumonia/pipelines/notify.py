"""How a run ended, said where people look."""

from __future__ import annotations

import json
import sys
import urllib.request

TIMEOUT_S = 10.0


def notify(url: str, run: str, state: str, reason: str) -> None:
    """Print how `run` ended and POST it to `url` (empty for nowhere) as {"text": ...}, the form of Slack's webhooks.

    A webhook that fails is a line on stderr: a message that did not arrive is no reason to call a run failed.
    """
    text = f"pneumonia: {run}: {state.lower()}" + (f": {reason}" if reason else "")
    print(f"notify: {text}", file=sys.stderr, flush=True)
    if not url:
        return
    headers = {"Content-Type": "application/json"}
    try:
        request = urllib.request.Request(url, json.dumps({"text": text}).encode(), headers)
        urllib.request.urlopen(request, timeout=TIMEOUT_S).close()
    except (OSError, ValueError) as error:
        print(f"notify: {type(error).__name__}: {error}; the message was not delivered", file=sys.stderr, flush=True)
