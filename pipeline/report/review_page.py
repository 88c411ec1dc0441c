"""Write the rows of a review as one HTML page, in which answers are corrected and saved as CSV."""

from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import jinja2


def review_page(run: str, rows: Sequence[dict[str, Any]], total: int) -> str:
    """Render rows of `evaluation.review.COLUMNS` as a page that needs no network.

    ``run``: URL of the run, to be shown; ``total``: number of its answers.
    """
    template = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
        files(__package__).joinpath("review.html.j2").read_text()
    )
    shown = ("prompt", "messages", "output", "answer")
    return template.render(run=run, rows=rows, total=total, columns=list(rows[0]), shown=shown)
