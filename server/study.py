"""How does a study run? Survey, pretrain, finetune, evaluate: one loop of rounds over any grid and any strategy."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from flwr.app import Message, MessageType
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from server.state import RoundRecord, State, load_state, save_state
from server.strategies.memory import read_memory, sampling_seed, write_memory
from server.strategies.registry import build_strategy
from shared.checkpoints import save_arrays, save_model
from shared.config import Stage, Study
from shared.errors import FedretinaError, MessageError
from shared.messages import (
    Evaluation,
    SurveyReply,
    Task,
    Update,
    decode_evaluation,
    decode_survey,
    decode_update,
    decode_weights,
    task_content,
    task_records,
)
from shared.metrics import Scores, empty_scores, mean_auroc
from shared.models.weights import start_encoder
from shared.objectives.registry import FINETUNE, PRETRAIN, build_objective
from shared.randomness import derive_seed
from shared.statistics import Statistics, merge
from shared.weights import Weights, carry_encoders, read_weights

SURVEY, EVALUATE = "survey", "evaluate"
MODEL, PRETRAINED = "model.safetensors", "pretrained.safetensors"
_POLL_S = 0.2

log = logging.getLogger(__name__)
Reply = TypeVar("Reply", SurveyReply, Update, Evaluation)
Collected = tuple[dict[str, tuple[Reply, Message]], dict[str, str]]
Watch = Callable[[RoundRecord], None]


class StudyError(FedretinaError):
    """A study that cannot go on: too few sites answered."""


def run_study(
    study: Study,
    grid: Grid,
    folder: Path,
    watch: Watch = lambda record: None,
    pretrained: Weights | None = None,
    judges: Grid | None = None,
) -> State:
    """Run a study to its end, or from where it was interrupted.

    Args:
        grid: the sites; a network or a simulation.
        folder: of the run; holds the state after every phase, at the end ``model.safetensors``.
        watch: is told of every round.
        pretrained: weights of a pretraining stage that was run already; the stage is then left out.
        judges: the sites on whose held-out patients the final weights are scored, where they are not those that train.

    Returns:
        The final state; the same, bit for bit, whether the run was interrupted or not.

    Raises:
        StudyError: too few sites answered.
        CheckpointError: the folder holds another study, or a damaged state.
    """
    return _Run(study, grid, judges or grid, folder, watch).complete(load_state(folder, study), pretrained)


def check_study(study: Study) -> None:
    """Build what a study will need, so that what only building shows is told before anything runs.

    Raises:
        FedretinaError: of the strategy, the model, or the weights that it starts from.
    """
    build_strategy(study)
    for stage, config in ((PRETRAIN, study.pretrain), (FINETUNE, study.finetune)):
        if config.rounds:
            _initial_weights(study, stage, Statistics.neutral(study))


def _initial_weights(study: Study, stage: str, statistics: Statistics) -> Weights:
    objective = build_objective(study, stage, statistics)
    encoders = objective.get_submodule("encoders" if stage == PRETRAIN else "model.encoders")
    for name, file in study.model.image.weights.items():
        if name in study.image_modalities:
            start_encoder(encoders.get_submodule(name), Path(file), f"model.image.weights.{name}")
    return read_weights(objective)


class _Run:
    def __init__(self, study: Study, grid: Grid, judges: Grid, folder: Path, watch: Watch) -> None:
        self.study, self.grid, self.judges, self.folder, self.watch = study, grid, judges, folder, watch
        self.names: dict[tuple[Grid, int], str] = {}  # of nodes, as their replies state them

    def complete(self, state: State, pretrained: Weights | None) -> State:
        self.names = {(self.grid, node): name for node, name in state.nodes.items()}
        if not state.surveys:
            state = self._survey(state)
        if pretrained is not None and not state.pretrained:
            state = replace(state, pretrained=pretrained)
        for stage, config in ((PRETRAIN, self.study.pretrain), (FINETUNE, self.study.finetune)):
            done_before = stage == PRETRAIN and (state.stage == FINETUNE or bool(state.pretrained))
            if config.rounds and not done_before:
                state = self._train_stage(state, stage, config)
        if self.study.finetune.rounds and not state.evaluations:
            state = self._evaluate(state)
        return state

    # The stages

    def _survey(self, state: State) -> State:
        started = time.perf_counter()
        task = Task(self.study, SURVEY, 0, 0, "", None, {})
        messages = _to_all(self.grid, task, MessageType.QUERY)
        surveys, failed = self._collect(
            self.grid, messages, lambda message: decode_survey(message.content, self.study), SURVEY
        )
        state = replace(state, surveys={site: reply.survey for site, (reply, _) in surveys.items()})
        statistics = Statistics.of(merge([survey for _, survey in sorted(state.surveys.items())]))
        return self._finish(replace(state, statistics=statistics), SURVEY, 1, 1, started, list(surveys), failed)

    def _train_stage(self, state: State, stage: str, config: Stage) -> State:
        strategy = build_strategy(self.study)
        if state.stage == stage:
            write_memory(strategy, state.memory)
        else:
            assert state.statistics is not None
            weights = _initial_weights(self.study, stage, state.statistics)
            if stage == FINETUNE:
                weights = carry_encoders(state.pretrained, weights, "model.")
            state = replace(state, stage=stage, round=0, weights=weights, memory={})
        while state.round < config.rounds:
            state = self._round(state, strategy, stage, config.rounds)
        if stage == PRETRAIN:
            state = replace(state, pretrained=state.weights)
            save_arrays(self.folder / PRETRAINED, state.pretrained, {"kind": PRETRAINED})
        return state

    def _round(self, state: State, strategy: Strategy, stage: str, rounds: int) -> State:
        started, number = time.perf_counter(), state.round + 1
        task = Task(self.study, stage, number, rounds, "", state.statistics, state.weights)
        arrays, config = task_records(task)
        with sampling_seed(derive_seed(self.study.seed, stage, number, "sampling")):
            messages = list(strategy.configure_train(number, arrays, config, self.grid))
        updates, failed = self._collect(self.grid, messages, lambda m: decode_update(m.content, state.weights), stage)
        # Sums of floats depend on their order: sites in order of name, whoever answered first.
        ordered = [reply for _, (_, reply) in sorted(updates.items())]
        aggregated, _ = strategy.aggregate_train(number, ordered)
        if aggregated is None:
            raise StudyError(f"{stage} round {number}", "must aggregate to new weights", value=self.study.strategy.name)
        tuning = {site: update.tuning for site, (update, _) in sorted(updates.items()) if update.tuning.cases}
        if stage == FINETUNE and number > 1:
            state = self._keep_best(state, tuning)
        examples = sum(update.examples for update, _ in updates.values())
        loss = sum(update.loss * update.examples for update, _ in updates.values()) / examples
        # Some strategies compute in double precision; the weights keep their own.
        weights = {name: a.astype(state.weights[name].dtype) for name, a in decode_weights(aggregated).items()}
        state = replace(state, round=number, weights=weights, memory=read_memory(strategy))
        return self._finish(state, stage, number, rounds, started, list(updates), failed, loss, tuning)

    def _evaluate(self, state: State) -> State:
        started = time.perf_counter()
        if self.study.finetune.select == "best":
            tuning, _ = self._scores(self.grid, state.weights, state, "tuning")
            state = self._keep_best(state, {site: scores for site, scores in tuning.items() if scores.cases})
        final = state.best if self.study.finetune.select == "best" and state.best else state.weights
        held_out, failed = self._scores(self.judges, final, state, "held_out")
        state = replace(state, weights=final, evaluations=held_out)
        assert state.statistics is not None
        save_model(self.folder / MODEL, self.study, state.statistics, final)
        return self._finish(state, EVALUATE, 1, 1, started, list(held_out), failed, None, held_out)

    def _scores(
        self, grid: Grid, weights: Weights, state: State, split: str
    ) -> tuple[dict[str, Scores], dict[str, str]]:
        task = Task(self.study, EVALUATE, 0, 0, split, state.statistics, weights)
        messages = _to_all(grid, task, MessageType.EVALUATE)
        replies, failed = self._collect(grid, messages, lambda message: decode_evaluation(message.content), EVALUATE)
        return {site: reply.scores for site, (reply, _) in sorted(replies.items())}, failed

    # Their parts

    def _keep_best(self, state: State, tuning: dict[str, Scores]) -> State:
        """Keep the weights that the sites have just scored when no earlier ones had a lower loss."""
        total = sum(tuning.values(), empty_scores())
        if not total.cases:
            return state
        loss = total.log_loss / total.cases
        if state.best_loss is None or loss < state.best_loss:
            return replace(state, best=state.weights, best_loss=loss)
        return state

    def _finish(
        self,
        state: State,
        stage: str,
        number: int,
        rounds: int,
        started: float,
        sites: list[str],
        failed: dict[str, str],
        loss: float | None = None,
        scored: dict[str, Scores] | None = None,
    ) -> State:
        """Record a phase, keep the state, tell who watches."""
        total = sum((scored or {}).values(), empty_scores())
        record = RoundRecord(
            stage=stage,
            round=number,
            rounds=rounds,
            loss=loss,
            tuning_loss=total.log_loss / total.cases if total.cases else None,
            auroc=mean_auroc(list((scored or {}).values()))[0],
            sites=sorted(sites),
            failed=failed,
            seconds=round(time.perf_counter() - started, 4),
        )
        nodes = {node: name for (grid, node), name in self.names.items() if grid is self.grid}
        state = replace(state, nodes=nodes).recorded(record)
        save_state(self.folder, self.study, state)
        self.watch(record)
        return state

    def _collect(
        self, grid: Grid, messages: list[Message], decode: Callable[[Message], Reply], stage: str
    ) -> Collected[Reply]:
        """Decoded replies by site with their messages, and the reasons of the sites that are left out.

        Raises:
            StudyError: fewer sites than the strategy's minimum answered with something usable.
        """
        replies: dict[str, tuple[Reply, Message]] = {}
        failed: dict[str, str] = {}
        for node, message in self._ask(grid, messages):
            name = self.names.get((grid, node), f"node {node}")
            try:
                if message is None:
                    timeout = self.study.strategy.round_timeout_s
                    raise MessageError(name, f"must answer within {timeout:g} s (strategy.round_timeout_s)")
                if message.has_error():
                    failed[name] = message.error.reason or "no reason given"
                    continue
                reply = decode(message)
                name = self.names[grid, node] = reply.site
                if name in replies:
                    raise MessageError(f"site {name}", "must be the name of one site only")
                replies[name] = (reply, message)
            except MessageError as error:
                failed[name] = str(error)
        for name, reason in failed.items():
            log.warning("%s: %s left out: %s", stage, name, reason)
        minimum = max(self.study.strategy.minimum_sites, 1)
        if len(replies) < minimum:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in failed.items()) or "no site is connected"
            raise StudyError(
                f"{stage}: sites that took part", f"must be >= {minimum}", value=len(replies), remedy=reasons
            )
        return replies, failed

    def _ask(self, grid: Grid, messages: list[Message]) -> Iterator[tuple[int, Message | None]]:
        """Each node asked with its reply, as they come; None for those that do not answer in time."""
        nodes = dict(zip(grid.push_messages(messages), (m.metadata.dst_node_id for m in messages), strict=True))
        deadline = time.monotonic() + self.study.strategy.round_timeout_s
        while nodes and time.monotonic() < deadline:
            replies = list(grid.pull_messages(list(nodes)))
            for reply in replies:
                # By message: an error that Flower itself makes does not name the node.
                node = nodes.pop(reply.metadata.reply_to_message_id, None)
                if node is not None:
                    yield node, reply
            if not replies:
                time.sleep(_POLL_S)
        for node in nodes.values():
            yield node, None


def _to_all(grid: Grid, task: Task, kind: str) -> list[Message]:
    """The same task for every node."""
    content = task_content(task)
    return [Message(content, node, kind) for node in sorted(grid.get_node_ids())]
