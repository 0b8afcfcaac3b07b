"""How does a run become one page that a clinician and a coordinator can read, print and keep?"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from server.report import charts, privacy, words
from server.report.record import Run, Score, read_run
from shared.config import MODALITIES
from shared.files import write_atomic
from shared.pages import render_page

REPORT = "report.html"
MOST_FAILURES = 40  # rows; beyond that the page says how many are left in rounds.jsonl


@dataclass(frozen=True)
class Failure:
    """Why a hospital was missing, and in which rounds."""

    site: str
    when: str
    rounds: str
    reason: str


def write_report(run: Path) -> Path:
    """Write ``<run>/report.html`` from ``<run>/summary.json`` and ``<run>/rounds.jsonl``; the file's path.

    One file that needs no network and no script. The same run gives the same bytes.

    Raises:
        FedretinaError: summary.json is missing, damaged or of another schema; an older report stays as it was.
    """
    page = _rendered(read_run(run))
    write_atomic(run / REPORT, page.encode())
    return run / REPORT


def _rendered(run: Run) -> str:
    failures = _failures(run)
    return render_page(
        Path(__file__).parent,
        _SAY,
        run=run,
        question=words.question(run),
        result=words.result(run),
        charts={draw.__name__: _markup(draw(run)) for draw in _CHARTS},
        modalities={key: words.MODALITY_NAMES[key] for key in MODALITIES},
        site_columns=_site_columns(run),
        synthetic=run.cohort.get("kind") == "synthetic",
        points=list(privacy.points(run.privacy)),
        pretraining=privacy.pretraining(run.privacy),
        sent=privacy.sent_messages(run),
        threats=privacy.THREATS,
        without=privacy.WITHOUT,
        failures=failures[:MOST_FAILURES],
        more_failures=len(failures) - len(failures[:MOST_FAILURES]),
        rounds=len({(each.arm, each.inputs, each.stage, each.number) for each in run.rounds}),
        settings=list(words.flat(run.cohort)),
    )


_SAY = (
    words.arm_name,
    words.short_arm_name,
    words.input_name,
    words.percent,
    words.decimal,
    words.whole,
    words.interval,
    words.duration,
)
_CHARTS = (charts.comparison, charts.roc, charts.calibration, charts.sites, charts.pretraining, charts.finetuning)


def _markup(svg: str) -> object:
    """Our own SVG, whose text ElementTree has escaped already."""
    from markupsafe import Markup

    return Markup(svg)


def _site_columns(run: Run) -> list[Score]:
    """The scores by input, then arm; none where no hospital has an AUROC of its own."""
    known = [auroc for score in run.scores for auroc in score.sites.values()] + [site.auroc for site in run.sites]
    scored = any(auroc is not None for auroc in known)
    return [score for inputs in run.inputs for score in run.scores if scored and score.inputs == inputs]


def _failures(run: Run) -> list[Failure]:
    """Each site's lasting fault, then the rounds it missed, gathered by arm, stage and reason."""
    lasting = [Failure(site.name, "Whole run", words.NONE, site.fault) for site in run.sites if site.fault]
    missed: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    for each in run.rounds:
        for site, reason in each.failed.items():
            arm = ", ".join(filter(None, (words.arm_name(each.arm), words.input_name(each.inputs).lower()))) or "Run"
            stage = words.STAGE_NAMES.get(each.stage, each.stage)
            missed[site, f"{arm}: {stage}", reason or "No reason was given"].append(each.number)
    return lasting + [Failure(site, when, words.ranges(numbers), why) for (site, when, why), numbers in missed.items()]
