"""What does a coordinator make of the sites' answers? Surveys, updates, scores of each site, believed or left out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

from flwr.app import Message

from server.aggregation import KeptUpdate, keep_update
from server.sites import Collected, Sites
from server.state import State
from server.vetting import check_claims, check_scores, find_outliers, update_size
from shared.config import EVALUATE, SURVEY, Study
from shared.errors import MessageError
from shared.messages import Evaluation, SurveyReply, decode_evaluation, decode_survey, decode_update

Make = Callable[[], Sequence[Message]]  # the messages of a round


class Answers(Protocol):
    """How the answers of sites are had: each by itself, or as sums."""

    def surveys(self, sites: Sites, message_for: Callable[[int], Message]) -> Collected[SurveyReply]:
        """Who joins the study, and with what."""
        ...

    def updates(
        self, sites: Sites, make: Make, state: State, stage: str, number: int, wait_s: float
    ) -> Collected[KeptUpdate]:
        """What was learned in a round, on disk."""
        ...

    def scores(self, sites: Sites, make: Make, state: State, wait_s: float) -> Collected[Evaluation]:
        """How weights did."""
        ...


class SingleAnswers:
    """Each site's answer by itself.

    Args:
        folder: in which updates wait.
    """

    def __init__(self, study: Study, folder: Path) -> None:
        self._study, self._folder = study, folder

    def surveys(self, sites: Sites, message_for: Callable[[int], Message]) -> Collected[SurveyReply]:
        return sites.gather(message_for, lambda message: decode_survey(message.content, self._study), SURVEY)

    def updates(
        self, sites: Sites, make: Make, state: State, stage: str, number: int, wait_s: float
    ) -> Collected[KeptUpdate]:
        found = sites.ask(make, partial(self._take_update, state, stage, number), stage, wait_s)
        history = [r.norm for r in state.records if r.stage == stage and r.norm is not None]
        sizes = {site: update.size for site, update in sorted(found.answers.items())}
        for site, reason in find_outliers(sizes, history, self._study).items():
            del found.answers[site]
            found.leave_out(stage, site, reason)
        return found

    def scores(self, sites: Sites, make: Make, state: State, wait_s: float) -> Collected[Evaluation]:
        return sites.ask(make, partial(self._take_evaluation, state), EVALUATE, wait_s)

    def _take_update(self, state: State, stage: str, number: int, message: Message) -> KeptUpdate:
        update = decode_update(message.content, state.weights)
        if (update.stage, update.round) != (stage, number):
            rule = f"must be of {stage} round {number}"
            raise MessageError("update", rule, value=f"{update.stage} round {update.round}")
        if update.site in state.surveys:
            check_claims(update, state.surveys[update.site])
        return keep_update(self._folder, update, message, update_size(update, state.weights))

    def _take_evaluation(self, state: State, message: Message) -> Evaluation:
        evaluation = decode_evaluation(message.content)
        if evaluation.site in state.surveys:
            check_scores(evaluation.scores, state.surveys[evaluation.site])
        return evaluation
