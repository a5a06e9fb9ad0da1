"""A hook of MkDocs: turn every formula of a page from TeX into MathML, which browsers show without a script."""

import html
import re
from typing import Any

from latex2mathml.converter import convert


# What `pymdownx.arithmatex` leaves: \(...\) in a span, \[...\] in a div.
_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def on_page_content(content: str, **context: Any) -> str:
    """Convert the formulas of one page, whose Markdown has become HTML."""
    del context
    return _FORMULA.sub(_mathml, content)


def _mathml(match: re.Match) -> str:
    element, tex = match.groups()
    tex = html.unescape(tex).strip().replace(r"\tfrac", r"\frac")
    return f"<{element}>{convert(tex, display='block' if element == 'div' else 'inline')}</{element}>"
