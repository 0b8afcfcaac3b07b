"""What does a coordinator make of sums over sites? A survey, an update or scores, as if of a single site."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

from flwr.app import Message, RecordDict

from server.aggregation import KeptUpdate, keep_update
from server.answers import Make
from server.secure_sum import MessageFor, SecureSum, Summed, new_session, take_advert
from server.sites import Answer, Collected, Sites
from server.state import State
from server.vetting import check_claims, check_scores, most_examples, update_size
from shared.config import EVALUATE, SURVEY, SecAgg, Study
from shared.errors import MessageError
from shared.messages import ARRAYS, Evaluation, SurveyReply, Update, with_step
from shared.privacy import PrivacyPlan
from shared.secure_aggregation.quantisation import from_sums, from_words, size_of
from shared.secure_aggregation.steps import Advert, Advertise, Mask, Step, start_digest
from shared.secure_aggregation.summands import Numbers, lengths, to_scores, to_survey, to_training
from shared.statistics import numeric_names

ALL_SITES = "all sites"  # under which a sum stands where the name of a site would

log = logging.getLogger(__name__)
T = TypeVar("T", bound=Answer)


class SummedAnswers:
    """The sum of the sites' answers, and nothing of any single one.

    Args:
        folder: in which the mean of a round's updates waits.
    """

    def __init__(self, study: Study, folder: Path) -> None:
        assert isinstance(study.secure_aggregation, SecAgg)
        self._study, self._folder, self._setting = study, folder, study.secure_aggregation

    def surveys(self, sites: Sites, message_for: Callable[[int], Message]) -> Collected[SurveyReply]:
        def ask(node: int, step: Step) -> Message:
            message = message_for(node)
            message.content = with_step(message.content, step)
            return message

        session, wait_s = new_session(), self._study.strategy.round_timeout_s
        joined = sites.gather(lambda node: ask(node, Advertise(session)), take_advert, SURVEY)
        start = start_digest({}, None, 0)
        total = partial(SecureSum, sites, self._setting, SURVEY, wait_s, message_for=ask, start=start)
        found = self._sum(total, session, joined, 0, lambda _, numbers: SurveyReply(ALL_SITES, to_survey(numbers)))
        found.check_enough(SURVEY, max(self._study.strategy.minimum_sites, self._study.strategy.start_sites))
        return found

    def updates(
        self, sites: Sites, make: Make, state: State, stage: str, number: int, wait_s: float
    ) -> Collected[KeptUpdate]:
        survey = state.surveys[ALL_SITES]
        most = most_examples(survey, stage)

        def to_update(summed: Summed, numbers: Numbers) -> KeptUpdate:
            examples, loss, tuning = to_training(numbers)
            largest = self._setting.largest_change
            weights = from_words(summed.vector.words, state.weights, examples / most, largest)
            told = loss if PrivacyPlan.of(self._study).release_of(stage) is None else None
            update = Update(ALL_SITES, stage, number, weights, examples, told, tuning, 0.0)
            check_claims(update, survey)  # more examples than in the survey, and the words may have gone around
            assert summed.reply is not None
            return keep_update(self._folder, update, summed.reply, update_size(update, state.weights))

        messages = make()
        start = start_digest(state.weights, state.statistics, self._study.stage(stage).rounds)
        asking = _asking(messages)
        total = partial(SecureSum, sites, self._setting, stage, wait_s, message_for=asking, start=start, examples=most)
        session, joined = _advertise(total, _nodes(messages))
        return self._sum(total, session, joined, size_of(state.weights), to_update)

    def scores(self, sites: Sites, make: Make, state: State, wait_s: float) -> Collected[Evaluation]:
        def to_evaluation(summed: Summed, numbers: Numbers) -> Evaluation:
            evaluation = Evaluation(ALL_SITES, to_scores(numbers), 0.0)
            check_scores(evaluation.scores, state.surveys[ALL_SITES])
            return evaluation

        messages = make()
        start = start_digest(state.weights, state.statistics, 0)
        total = partial(SecureSum, sites, self._setting, EVALUATE, wait_s, message_for=_asking(messages), start=start)
        session, joined = _advertise(total, _nodes(messages))
        return self._sum(total, session, joined, 0, to_evaluation)

    def _sum(
        self,
        total: Callable[[str], SecureSum],
        session: str,
        joined: Collected[Advert],
        words: int,
        take: Callable[[Summed, Numbers], T],
    ) -> Collected[T]:
        """One sum over the sites that joined; anew without those that failed, where they were too many for it.

        Args:
            total: makes a sum of a session.
            take: what the sum says, as an answer; raises ``MessageError`` for what cannot be.
        """
        found: Collected[T] = Collected(failed=joined.failed, silent=joined.silent)
        while True:
            one = total(session)
            counts, reals = lengths(one.stage, self._features)
            try:
                summed = one.of(joined.answers, words, counts + reals)
                found.answers[ALL_SITES] = take(summed, Numbers(*from_sums(summed.vector.sums, counts)))
                found.summed = summed.survivors
                return found
            except MessageError as error:
                reason = str(error)
            finally:
                found.failed |= one.failed
                found.silent |= one.silent
            left = [node for node, name in one.sites.names.items() if name in joined.answers.keys() - one.failed.keys()]
            if len(left) == len(joined.answers) or len(left) < self._setting.fewest:
                found.leave_out(one.stage, ALL_SITES, reason)
                return found
            log.warning("%s: %s; a new sum begins without %s", one.stage, reason, ", ".join(sorted(one.failed)))
            session, joined = _advertise(total, left)
            found.failed |= joined.failed
            found.silent |= joined.silent

    @property
    def _features(self) -> int:
        """Numeric features in the survey."""
        return len(numeric_names(self._study))


def _advertise(total: Callable[[str], SecureSum], nodes: Sequence[int]) -> tuple[str, Collected[Advert]]:
    """A new session, and the keys that sites made for it."""
    session = new_session()
    return session, total(session).adverts(nodes)


def _nodes(messages: Sequence[Message]) -> list[int]:
    return [message.metadata.dst_node_id for message in messages]


def _asking(messages: Sequence[Message]) -> MessageFor:
    """Ask the nodes of some messages for steps; the weights go along when the work is to be done."""
    by_node = {message.metadata.dst_node_id: message for message in messages}

    def ask(node: int, step: Step) -> Message:
        whole = by_node[node].content
        content = whole if isinstance(step, Mask) else RecordDict({n: r for n, r in whole.items() if n != ARRAYS})
        return Message(with_step(content, step), node, by_node[node].metadata.message_type)

    return ask
