"""A run as it stays in a saved notebook: an image that carries its own metrics, a table, and nothing that needs a kernel.

The image is an <img> with the SVG inside its address, in base64: of the ways to put an SVG into an output that one is
shown by JupyterLab, nbconvert and Colab, and by GitHub, which takes <svg>, <style> and <script> out of HTML.
"""

from __future__ import annotations

import base64
import re
from html import escape, unescape

from nbkit.widgets.feed import Feed
from nbkit.widgets.head import Head
from nbkit.widgets.picture import WIDTH, picture
from nbkit.widgets.summary import Record, record, samples_html, summary

MOST_BYTES = 25_000  # of the image as it stands in the notebook
_POINTS = (320, 280, 240, 210, 180, 150, 120, 90, 60, 30)
_ADDRESS = "data:image/svg+xml;base64,"
_IMAGE = re.compile(re.escape(_ADDRESS) + r"([A-Za-z0-9+/=]+)")
_METADATA = re.compile(r'<metadata id="nbkit-run">(.*?)</metadata>', re.DOTALL)


class Frozen:
    """The last view of a run: HTML for a notebook, the table as text elsewhere."""

    def __init__(self, feed: Feed) -> None:
        self._table = summary(feed)
        image = base64.b64encode(svg(feed).encode()).decode()
        told = escape(f"{feed.run.title}: {(feed.head or Head()).line}", quote=True)
        self._html = (
            f'<div><img alt="{told}" width="{WIDTH}" style="max-width:100%" src="{_ADDRESS}{image}">'
            f"{self._table._repr_html_()}{samples_html(feed)}</div>"
        )

    def __repr__(self) -> str:
        return str(self._table)

    def _repr_html_(self) -> str:
        return self._html


def svg(feed: Feed) -> str:
    """The picture with its record inside, with as many points as fit into MOST_BYTES of base64."""
    drawn = ""
    for points in _POINTS:
        drawn = picture(feed, inline=False, points=points, metadata=record(feed, points // 2).dumps())
        if len(drawn.encode()) * 4 / 3 + len(_ADDRESS) + 4 <= MOST_BYTES:
            return drawn
    return drawn


def records_in(html: str) -> list[Record]:
    """The records that frozen images in `html` carry; an SVG that stands in it as it is counts as well.

    Raises: ValueError when one of them is damaged.
    """
    drawn = [base64.b64decode(found, validate=True).decode() for found in _IMAGE.findall(html)]
    return [Record.loads(unescape(found)) for text in (html, *drawn) for found in _METADATA.findall(text)]
