"""What every self-contained page is made with: no network, every text of a model escaped."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup

from equilibrate.config.sources import without_secrets
from equilibrate.errors import ResourceError
from equilibrate.report.headline import percent, signed


def template(package: str, name: str) -> jinja2.Template:
    """A template beside the modules of a package, with the filters `percent` and `signed`."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(package, "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "signed": signed}
    return environment.get_template(name)


def plotly_library() -> Markup:
    """The library that draws, to be inlined. Raises: ResourceError if it is not installed."""
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise ResourceError(
            "the report needs plotly, which is not installed; run pip install 'equilibrate[report]'"
        ) from error
    return Markup(get_plotlyjs())


def own_file(name: str) -> Markup:
    """Our style sheet or script, to be inlined."""
    return Markup(resources.files("equilibrate.report").joinpath(name).read_text("utf-8"))


def script_json(value: Any) -> Markup:
    """JSON for a script element: no text in it can end the element or start a comment."""
    text = json.dumps(_finite(value), allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted path and value of every setting as an override would be written; no password."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", without_secrets(str(value))


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
