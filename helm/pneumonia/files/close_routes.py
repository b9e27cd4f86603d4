"""Deletes HTTPRoutes and waits until they are gone: close_routes.py NAMESPACE NAME... Standard library."""

from __future__ import annotations

import ssl
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

TOKEN = Path("/var/run/secrets/kubernetes.io/serviceaccount")
API = "https://kubernetes.default.svc/apis/gateway.networking.k8s.io/v1/namespaces"
WAIT_S = 60


def ask(method: str, url: str) -> int:
    """HTTP status of the API server's answer."""
    request = urllib.request.Request(url, method=method)
    request.add_header("Authorization", f"Bearer {(TOKEN / 'token').read_text('ascii')}")
    context = ssl.create_default_context(cafile=str(TOKEN / "ca.crt"))
    try:
        with urllib.request.urlopen(request, timeout=30, context=context) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return 404
        raise SystemExit(f"FAILED: {method} {url} is answered {error.code}: {error.read()[:300]!r}") from error


def main() -> int:
    namespace, *names = sys.argv[1:]
    left = [f"{API}/{namespace}/httproutes/{name}" for name in names]
    until = time.monotonic() + WAIT_S
    while True:
        left = [url for url in left if ask("DELETE", url) != 404 and ask("GET", url) != 404]
        if not left:
            print(f"no HTTPRoute leads to {names[0]} any more")
            return 0
        if time.monotonic() > until:
            print(f"FAILED: still there after {WAIT_S} s: {', '.join(left)}; see who makes them anew")
            return 1
        time.sleep(1)


if __name__ == "__main__":
    raise SystemExit(main())
