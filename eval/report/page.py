"""From the contents of a report to one HTML file that needs nothing else, and runs no script but its own."""

import base64
import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from .tables import number

HERE = Path(__file__).parent
SCRIPTS = ("vendor/uPlot.js", "templates/report.js")
STYLES = ("vendor/uPlot.css", "templates/report.css")


def render(contents: dict[str, Any]) -> bytes:
    """The file.

    Every text of the runs is escaped by the template, and the browser is told to run the page's own scripts alone, to
    load nothing and to send nothing (Content-Security-Policy). What UTF-8 cannot hold is replaced.

    Args:
        contents: of `command.contents`.
    """
    environment = Environment(
        loader=FileSystemLoader(HERE / "templates"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters |= {"number": number}
    scripts = [_read(name) for name in SCRIPTS]
    text = environment.get_template("report.html").render(
        **contents,
        data=as_json({**contents["curves"], "tips": contents["tips"]}),
        scripts=[Markup(script) for script in scripts],
        styles=[Markup(_read(name)) for name in STYLES],
        policy=policy(scripts),
    )
    return text.lstrip().encode("utf-8", errors="replace")


def as_json(value: Any) -> Markup:
    """JSON that can stand inside a `<script>`: no character in it ends the element."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def policy(scripts: list[str]) -> str:
    """The Content-Security-Policy that lets these scripts run, styles and embedded images show, and nothing else."""
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes)
    return f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:; base-uri 'none'"


@cache
def _read(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")
