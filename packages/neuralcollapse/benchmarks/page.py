"""From rows to the Markdown page of the documentation."""

from typing import Any

from .protocol import Row


def to_markdown(results: dict[str, Any]) -> str:
    import json
    return json.dumps(results)[:100]
