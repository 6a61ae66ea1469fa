"""Notices of preemption: what a cloud says to a machine shortly before it takes it away.

Asked for every few seconds in a thread, from the machine's metadata server, which answers on every instance of
that cloud and nowhere else. Google gives about 30 s, Amazon 2 minutes. A server that does not answer is told once
and asked again; it never ends a run. SLURM sends signals instead: SIGTERM, and SIGUSR1 where `--signal=USR1@90` is
set. Standard library only.

Source: cloud.google.com/compute/docs/instances/create-use-preemptible (`instance/preempted`, GCE_METADATA_HOST);
docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html (`spot/instance-action`).
"""

from __future__ import annotations

import os
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from http.client import HTTPException

POLL_S = 3.0
TIMEOUT_S = 2.0
_TOKEN_S = "21600"  # a token of Amazon's server lives so long at most
# Not by a proxy that the environment may name: the server is the machine's own.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def gce() -> str:
    """Google's notice, or "". Raises: OSError, HTTPException where the server does not answer."""
    host = os.environ.get("GCE_METADATA_HOST") or "metadata.google.internal"
    said = _ask(f"http://{host}/computeMetadata/v1/instance/preempted", {"Metadata-Flavor": "Google"})
    return "Google's notice of preemption" if said.strip().upper() == "TRUE" else ""


def aws() -> str:
    """Amazon's notice for a spot instance, or "". Raises: OSError, HTTPException where the server does not answer."""
    named = os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT") or "http://169.254.169.254"
    server = named.rstrip("/") + "/latest"
    token = _ask(f"{server}/api/token", {"X-aws-ec2-metadata-token-ttl-seconds": _TOKEN_S}, method="PUT")
    try:
        said = _ask(f"{server}/meta-data/spot/instance-action", {"X-aws-ec2-metadata-token": token.strip()})
    except urllib.error.HTTPError as error:
        if error.code == 404:  # nothing is planned
            return ""
        raise
    return f"Amazon's notice of preemption {' '.join(said.split())[:100]}"


NOTICES: dict[str, Callable[[], str] | None] = {"none": None, "gce": gce, "aws": aws}
"""Who is asked; `config.checkpoint.preemption_notice`."""


def watch(
    name: str,
    *,
    on_notice: Callable[[str], None],
    on_trouble: Callable[[str], None],
    until: threading.Event,
) -> None:
    """Asks in a thread until there is a notice.

    Args:
        name: key of `NOTICES`.
        on_notice: called once, with words for people.
        on_trouble: called once, the first time that the server does not answer.
    """
    ask = NOTICES[name]
    if ask is None:
        return

    def poll() -> None:
        told = False
        while True:
            try:
                if said := ask():
                    return on_notice(said)
            except (OSError, HTTPException, ValueError) as error:
                if not told:
                    told = True
                    on_trouble(
                        f"note: the metadata server of {name!r} gives no answer ({error}): without it no notice of "
                        "preemption is seen. config.checkpoint.preemption_notice='none' asks none."
                    )
            if until.wait(POLL_S):
                return

    threading.Thread(target=poll, name="notices", daemon=True).start()


def _ask(url: str, headers: Mapping[str, str], *, method: str = "GET") -> str:
    request = urllib.request.Request(url, headers=dict(headers), method=method)
    with _OPENER.open(request, timeout=TIMEOUT_S) as answer:
        return answer.read(10_000).decode("utf-8", "replace")
