"""The page around the sections: style, title, and the promise to load nothing."""

import base64
import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from lerobot_smoothvla.report.markup import Html, tag

_STYLE = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
_SCRIPT = """
for (const button of document.querySelectorAll("button.together")) {
  button.addEventListener("click", () => {
    for (const video of button.parentElement.querySelectorAll("video")) {
      video.currentTime = 0;
      video.play();
    }
  });
}
"""
_REFRESH_S = 5


def document(title: str, parts: Iterable[str], live: bool = False) -> str:
    """A whole page that asks the network for nothing, and forbids the browser to.

    Args:
        title: Of the page.
        parts: What it shows.
        live: Whether it loads itself again every few seconds.
    """
    digest = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
    allowed = {
        "default-src": "'none'",
        "style-src": "'unsafe-inline'",
        "script-src": f"'sha256-{digest}'",
        "img-src": "data:",
        "media-src": "data:",
    }
    policy = "; ".join(f"{kind} {source}" for kind, source in allowed.items())
    head = [
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name_="viewport", content="width=device-width, initial-scale=1"),
        tag("link", rel="icon", href="data:,"),
        tag("title", title),
        tag("style", Html(_STYLE)),
    ]
    if live:
        head.insert(1, tag("meta", http_equiv="refresh", content=_REFRESH_S))
    body = [tag("main", tag("h1", title), *parts), tag("script", Html(_SCRIPT))]
    return "<!DOCTYPE html>\n" + tag("html", tag("head", *head), tag("body", *body), lang="en") + "\n"


def write_page(path: Path, page: str) -> None:
    """Write the page, whole or not at all: a browser may be loading it.

    Raises:
        OSError: If it cannot be written.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(page, encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        raise OSError(
            f"The page {path} cannot be written ({error.strerror}); choose another place."
        ) from error
