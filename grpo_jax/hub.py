"""Whether the Hugging Face hub answers: asked once and briefly, so that a run without a network ends soon.

The libraries that fetch from it try again and again, for minutes where nothing answers at all. Here it is asked first;
where it is silent they are told to use what is on this machine, as HF_HUB_OFFLINE=1 tells them.
"""

from __future__ import annotations

import functools
import os
import sys
import threading
import urllib.error
import urllib.request

DEFAULT_ENDPOINT = "https://huggingface.co"
PATIENCE_S = 6.0  # for an answer of any kind, the look-up of its name included
_SWITCHES = ("huggingface_hub.constants", "datasets.config")  # modules that have read the variable


@functools.cache
def trouble() -> str:
    """Why nothing can be fetched, in a few words; "" where the hub answers. From then on the libraries know too."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return "HF_HUB_OFFLINE is set"
    endpoint = os.environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT
    if _answers(endpoint):
        return ""
    os.environ["HF_HUB_OFFLINE"] = "1"
    for module in _SWITCHES:
        if module in sys.modules:
            sys.modules[module].HF_HUB_OFFLINE = True  # type: ignore[attr-defined]
    return f"nothing answers at {endpoint} within {PATIENCE_S:.0f} s"


def _answers(endpoint: str) -> bool:
    """In a thread of its own: no time limit of Python's holds for the look-up of a name."""
    answered = threading.Event()

    def ask() -> None:
        try:
            urllib.request.urlopen(
                urllib.request.Request(endpoint, method="HEAD"), timeout=PATIENCE_S
            ).close()
        except urllib.error.HTTPError:
            pass  # an answer all the same
        except (OSError, ValueError):
            return
        answered.set()

    thread = threading.Thread(target=ask, name="hub", daemon=True)
    thread.start()
    thread.join(PATIENCE_S)
    return answered.is_set()
