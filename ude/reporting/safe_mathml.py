"""MathML from a file, made harmless: only elements and attributes of formulas pass, and text stays text."""

from __future__ import annotations

import html
import re
from xml.etree import ElementTree

_ELEMENTS = frozenset(
    ("math", "mtable", "mtr", "mtd", "mrow", "mstyle", "mspace", "mfenced", "menclose", "mi", "mn", "mo", "mtext")
    + ("mfrac", "msup", "msub", "msubsup", "msqrt", "mroot", "mover", "munder", "munderover")
)
_ATTRIBUTES = {
    "display": re.compile(r"block|inline"),
    "displaystyle": re.compile(r"true|false"),
    "width": re.compile(r"\d{1,3}(\.\d{1,3})?(em|ex|px)"),
    "mathvariant": re.compile(r"[a-z-]{1,30}"),
    "stretchy": re.compile(r"true|false"),
    "notation": re.compile(r"[a-z ]{1,30}"),
    "open": re.compile(r"[(\[{|]?"),
    "close": re.compile(r"[)\]}|]?"),
    "separators": re.compile(r"[,;]?"),
}
_NAMED = re.compile(r"&(?!(?:lt|gt|amp|quot|apos);)\w+;")


def harmless(text: str) -> str:
    """Formulas ``<math>...</math>``, joined by ``<br>``, written again from what is allowed; anything else as text."""
    return "<br>".join(_formula(part) for part in text.split("<br>")) if text else ""


def _formula(text: str) -> str:
    # a document type could define entities without end
    if "<!" in text or "<?" in text:
        return html.escape(text)
    try:
        # names such as &ExponentialE; are HTML's and unknown to XML
        root = ElementTree.fromstring(_NAMED.sub(lambda match: html.unescape(match[0]), text))
    except ElementTree.ParseError:
        return html.escape(text)
    return _element(root) if root.tag == "math" else html.escape(text)


def _element(node: ElementTree.Element) -> str:
    inside = html.escape(node.text or "", quote=False)
    inside += "".join(_element(child) + html.escape(child.tail or "", quote=False) for child in node)
    if node.tag not in _ELEMENTS:
        return inside
    kept = [
        f' {name}="{html.escape(value)}"'
        for name, value in node.attrib.items()
        if name in _ATTRIBUTES and _ATTRIBUTES[name].fullmatch(value)
    ]
    return f"<{node.tag}{''.join(kept)}>{inside}</{node.tag}>"
