"""How does a study run? Survey, pretrain, finetune, evaluate: one loop of rounds over any grid and any strategy."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from flwr.app import Message, MessageType, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from server.aggregation import UPDATES, KeptUpdate, aggregate, drop_updates, to_sample_with
from server.answers import Answers, SingleAnswers
from server.secure_answers import SummedAnswers
from server.sites import Collected, Names, Sites, StudyError, benched_sites, wait_of_round
from server.state import RoundRecord, State, load_state, load_weights, save_state
from server.strategies.memory import read_memory, sampling_seed, write_memory
from server.strategies.registry import build_strategy
from shared.checkpoints import load_arrays, save_arrays
from shared.config import EVALUATE, FINETUNE, PRETRAIN, SURVEY, SecAgg, Stage, Study
from shared.memory import give_back
from shared.messages import ARRAYS, CONFIG, Evaluation, Task, encode_weights, task_content
from shared.metrics import Scores, empty_scores, mean_auroc
from shared.models.saved import save_model
from shared.randomness import derive_seed
from shared.statistics import Statistics, merge
from shared.weights import Weights, carry_encoders, size_bytes

MODEL, PRETRAINED = "model.safetensors", "pretrained.safetensors"

log = logging.getLogger(__name__)
Watch = Callable[[RoundRecord], None]
Notice = Callable[[str], None]


def run_study(
    study: Study,
    grid: Grid,
    folder: Path,
    watch: Watch = lambda record: None,
    pretrained: Weights | None = None,
    judges: Grid | None = None,
    enrolled: Names | None = None,
    notice: Notice = lambda text: None,
) -> State:
    """Run a study to its end, or from where it was interrupted.

    Args:
        grid: the sites; a network or a simulation.
        folder: of the run; holds the state after every phase, at the end ``model.safetensors``.
        watch: is told of every round.
        pretrained: weights of a pretraining stage that was run already; the stage is then left out.
        judges: the sites on whose held-out patients the final weights are scored, where they are not those that train.
        enrolled: names of the nodes that may take part; without it, whoever is connected does, by the name it states.
        notice: is told in one line what is being waited for.

    Returns:
        The final state; the same, bit for bit, whether the run was interrupted or not.

    Raises:
        StudyError: too few sites answered.
        CheckpointError: the folder holds another study, or damaged states alone.
    """
    state = load_state(folder, study)
    sites = Sites(grid, study.strategy, state.nodes, enrolled, notice)
    run = _Run(study, sites, sites if judges is None else Sites(judges, study.strategy, {}), folder, watch, state)
    return run.complete(pretrained)


def is_complete(study: Study, folder: Path) -> bool:
    """Has the study of this folder ended?"""
    state = load_state(folder, study)
    if study.finetune.rounds:
        return bool(state.evaluations)
    return state.stage == PRETRAIN and state.round == study.pretrain.rounds and (folder / PRETRAINED).exists()


class _Run:
    """A study on its way; holds one state, so that a large model is in memory once."""

    def __init__(self, study: Study, sites: Sites, judges: Sites, folder: Path, watch: Watch, state: State) -> None:
        self.study, self.sites, self.judges, self.folder, self.watch = study, sites, judges, folder, watch
        self.state = state
        summed = isinstance(study.secure_aggregation, SecAgg)
        self.answers: Answers = (SummedAnswers if summed else SingleAnswers)(study, folder / UPDATES)

    def complete(self, pretrained: Weights | None) -> State:
        if not self.state.surveys:
            self._survey()
        for stage, config in self.study.training.items():
            done_before = stage == PRETRAIN and (self.state.stage == FINETUNE or pretrained is not None)
            if not done_before:
                self._train_stage(stage, config, pretrained)
        if self.study.finetune.rounds and not self.state.evaluations:
            self._evaluate()
        return self.state

    # The stages

    def _survey(self) -> None:
        started = time.perf_counter()
        content = task_content(Task.to_survey(self.study))
        found = self.answers.surveys(self.sites, lambda node: Message(content, node, MessageType.QUERY))
        surveys = {site: reply.survey for site, reply in sorted(found.answers.items())}
        self.state = replace(self.state, surveys=surveys, statistics=Statistics.of(merge(list(surveys.values()))))
        self._finish(RoundRecord(SURVEY, 1, 1), started, found)

    def _train_stage(self, stage: str, config: Stage, pretrained: Weights | None) -> None:
        strategy = build_strategy(self.study)
        if self.state.stage == stage:
            write_memory(strategy, self.state.memory)
        else:
            assert self.state.statistics is not None
            from server.start import initial_weights  # and torch, which a study that goes on can do without

            weights = initial_weights(self.study, stage, self.state.statistics)
            if stage == FINETUNE:
                if pretrained is None and self.study.pretrain.rounds:
                    pretrained = load_arrays(self.folder / PRETRAINED)[0]
                weights = carry_encoders(pretrained or {}, weights, "model.")
            self.state = replace(self.state, stage=stage, round=0, weights=weights, memory={})
            del weights, pretrained
            give_back(size_bytes(self.state.weights))
        while self.state.round < config.rounds:
            self._round(strategy, stage, config.rounds)
        if stage == PRETRAIN:
            save_arrays(self.folder / PRETRAINED, self.state.weights, {"kind": PRETRAINED})

    def _round(self, strategy: Strategy, stage: str, rounds: int) -> None:
        started, number = time.perf_counter(), self.state.round + 1
        found = self._updates(strategy, stage, number, rounds)
        updates = [update for _, update in sorted(found.answers.items())]
        weights = aggregate(strategy, number, updates, self.state.weights)
        drop_updates(self.folder / UPDATES)
        if weights is None:
            raise StudyError(f"{stage} round {number}", "must aggregate to new weights", value=self.study.strategy.name)
        tuning = {update.site: update.tuning for update in updates if update.tuning.cases}
        if stage == FINETUNE and number > 1:
            self._keep_best(tuning)
        self.state = replace(self.state, round=number, weights=weights, memory=read_memory(strategy))
        examples = sum(update.examples for update in updates)
        told = [update.loss * update.examples for update in updates if update.loss is not None]
        record = RoundRecord(
            stage,
            number,
            rounds,
            loss=sum(told) / examples if len(told) == len(updates) else None,
            norm=statistics.median(update.size for update in updates),
            site_seconds=round(max(update.seconds for update in updates), 4),
        )
        self._finish(record, started, found, tuning)

    def _updates(self, strategy: Strategy, stage: str, number: int, rounds: int) -> Collected[KeptUpdate]:
        """The updates of a round, which is tried again when too few sites answered in time.

        Raises:
            StudyError: too few answered in the last attempt, or the others gave reasons that time does not mend.
        """
        config = self.study.strategy
        for attempt in range(1, config.attempts + 1):
            drop_updates(self.folder / UPDATES)
            make = partial(self._sample, strategy, stage, number, rounds, attempt)
            found = self.answers.updates(
                self.sites, make, self.state, stage, number, wait_of_round(self.state.records, stage, config)
            )
            answered = len(found.sites)
            is_hopeless = answered + len(found.silent) < config.minimum_sites
            if answered >= config.minimum_sites or is_hopeless or attempt == config.attempts:
                break
            log.warning("%s round %d: %d of %d attempts failed", stage, number, attempt, config.attempts)
        found.check_enough(stage, config.minimum_sites)
        return found

    def _sample(self, strategy: Strategy, stage: str, number: int, rounds: int, attempt: int) -> list[Message]:
        content = task_content(Task(self.study, stage, number, rounds, "", self.state.statistics, {}))
        benched = benched_sites(self.state.records, self.study.strategy) & self.state.members
        if len(self.state.members) - len(benched) < self.study.strategy.minimum_sites:
            benched = set()
        for site in sorted(benched):
            log.info("%s round %d: %s is left in peace after failing (strategy.bench_after)", stage, number, site)
        grid = self.sites.among(self.state.members - benched)
        with sampling_seed(derive_seed(self.study.seed, stage, number, "sampling", attempt)):
            messages = list(
                strategy.configure_train(
                    number, to_sample_with(strategy, self.state.weights), content.config_records[CONFIG], grid
                )
            )
        for message in messages:
            message.content = RecordDict(dict(message.content.config_records))
        # Strategies name each tensor; on the wire there are few pieces. One of the two is in memory at a time.
        give_back(size_bytes(self.state.weights))
        pieces = encode_weights(self.state.weights)
        for message in messages:
            message.content[ARRAYS] = pieces
        return messages

    def _evaluate(self) -> None:
        started = time.perf_counter()
        if self.study.finetune.select == "best":
            tuning = self._scores(self.sites, "tuning").answers
            self._keep_best({site: reply.scores for site, reply in sorted(tuning.items()) if reply.scores.cases})
            if self.state.best is not None and self.state.best != self.state.phase:
                self.state = replace(self.state, weights=load_weights(self.folder, self.state.best))
        found = self._scores(self.judges, "held_out")
        held_out = {site: reply.scores for site, reply in sorted(found.answers.items())}
        self.state = replace(self.state, evaluations=held_out)
        assert self.state.statistics is not None
        save_model(self.folder / MODEL, self.study, self.state.statistics, self.state.weights)
        self._finish(RoundRecord(EVALUATE, 1, 1), started, found, held_out)

    def _scores(self, sites: Sites, split: str) -> Collected[Evaluation]:
        config = self.study.strategy
        make = partial(self._to_score, sites, split)
        found = self.answers.scores(sites, make, self.state, config.round_timeout_s)
        found.check_enough(EVALUATE, config.minimum_sites)
        return found

    def _to_score(self, sites: Sites, split: str) -> list[Message]:
        content = task_content(Task(self.study, EVALUATE, 0, 0, split, self.state.statistics, self.state.weights))
        grid = sites.among(self.state.members) if sites is self.sites else sites.grid
        return [Message(content, node, MessageType.EVALUATE) for node in grid.get_node_ids()]

    # Their parts

    def _keep_best(self, tuning: dict[str, Scores]) -> None:
        """Remember the weights that the sites have just scored when no earlier ones had a lower loss."""
        total = sum(tuning.values(), empty_scores())
        if not total.cases:
            return
        loss = total.log_loss / total.cases
        if self.state.best_loss is None or loss < self.state.best_loss:
            self.state = replace(self.state, best=self.state.phase, best_loss=loss)

    def _finish(
        self,
        record: RoundRecord,
        started: float,
        found: Collected[Any],
        scored: dict[str, Scores] | None = None,
    ) -> None:
        """Record a phase, keep the state, tell who watches."""
        total = sum((scored or {}).values(), empty_scores())
        record = replace(
            record,
            tuning_loss=total.log_loss / total.cases if total.cases else None,
            auroc=mean_auroc(list((scored or {}).values()))[0],
            sites=found.sites,
            failed=found.failed,
            seconds=round(time.perf_counter() - started, 4),
        )
        self.state = replace(self.state, nodes=self.sites.names).recorded(record)
        save_state(self.folder, self.study, self.state)
        self.watch(record)
