"""How does an audit become one page that a data protection officer can read, print and keep?"""

from __future__ import annotations

from datetime import date
from importlib.metadata import version
from pathlib import Path

from client.audit import words
from client.audit.charts import curves
from client.audit.result import Audit
from client.audit.strength import FALSE_RATES
from client.check.thumbnails import png_uri
from shared.pages import render_page

_SAY = (
    words.percent,
    words.decimal,
    words.between,
    words.rate_name,
    words.found,
    words.sure,
    words.attack_name,
    words.modality,
    words.redrawn,
    png_uri,
)


def render(audit: Audit, audited_on: date) -> str:
    """The page as HTML: no script, nothing from elsewhere; the same audit gives the same bytes."""
    from markupsafe import Markup

    return render_page(
        Path(__file__).parent,
        _SAY,
        audit=audit,
        verdict=words.VERDICTS[audit.verdict],
        headline=words.headline(audit),
        false_rates=FALSE_RATES,
        chart=Markup(curves(audit.attacks, audit.others)),  # our own SVG, whose text is escaped
        too_few=words.too_few(audit),
        caveats=words.caveats(audit),
        not_proved=words.NOT_PROVED,
        audited_on=f"{audited_on.day} {audited_on:%B %Y}",
        version=version("fedretina"),
    )
