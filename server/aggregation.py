"""How do many large updates become one without lying in memory together? They wait on disk, and are merged in parts.

Averages, medians and trimmed means take each weight by itself, so Flower's strategies for them are given a few tensors
at a time; the others see whole updates.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg, FedMedian, FedProx, FedTrimmedAvg, Strategy

from shared.errors import MessageError
from shared.messages import ARRAYS, EXAMPLES, METRICS, Update
from shared.metrics import Scores
from shared.weights import Weights, alike, small_together

UPDATES = "updates"  # folder of the updates of the round that is on, in a run's
_ELEMENTWISE = {FedAvg, FedMedian, FedProx, FedTrimmedAvg}
_PART_BYTES = 32 * 2**20  # of all updates together
_LARGE = 2**18  # bytes of a tensor that is not put together with others


@dataclass(frozen=True)
class KeptUpdate:
    """An update whose weights wait on disk.

    Attributes:
        reply: the message that brought it, emptied.
        size: of the change (``server.vetting``).
        seconds: for which the site was at work.
    """

    site: str
    reply: Message
    examples: int
    loss: float | None
    tuning: Scores
    size: float
    seconds: float
    file: Path

    def read(self, names: Sequence[str], like: Weights) -> Weights:
        """Some of its tensors; all were written in the order and types of ``like``."""
        found: Weights = {}
        with self.file.open("rb") as stream:
            place = 0
            for name, array in like.items():
                if name in names:
                    stream.seek(place)
                    found[name] = np.fromfile(stream, array.dtype, array.size).reshape(array.shape)
                place += array.nbytes
        return found


def keep_update(folder: Path, update: Update, reply: Message, size: float) -> KeptUpdate:
    """Put the weights of an update into a file of their own."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{reply.metadata.src_node_id}.bin"
    with file.open("wb") as stream:
        for array in update.weights.values():
            stream.write(
                np.asarray(array, order="C").data if array.ndim else array.tobytes()
            )  # tofile hides a full disk
    reply.content = RecordDict()
    return KeptUpdate(update.site, reply, update.examples, update.loss, update.tuning, size, update.seconds, file)


def drop_updates(folder: Path) -> None:
    """Remove the files of a round."""
    shutil.rmtree(folder, ignore_errors=True)


def aggregate(strategy: Strategy, number: int, updates: Sequence[KeptUpdate], like: Weights) -> Weights | None:
    """The next weights, as the strategy makes them of a round's updates; None when it makes none.

    Args:
        updates: in an order that does not depend on who answered first, since sums of floats do.
        like: arrays of the names, shapes and types that the weights have.
    """
    merged: Weights = {}
    elementwise = type(strategy) in _ELEMENTWISE
    for names in _parts(like, len(updates), elementwise):
        parts = [update.read(names, like) for update in updates]
        # What all have alike, as a frozen encoder, stays so to the bit; a mean of it would be rounded.
        same = alike(parts) if elementwise else {}
        merged |= same
        if len(same) == len(names):
            continue
        rest = [{name: array for name, array in part.items() if name not in same} for part in parts]
        joined = [_join(part) for part in rest] if elementwise else rest
        replies = [_with_content(update, part) for update, part in zip(updates, joined, strict=True)]
        arrays, _ = strategy.aggregate_train(number, replies)
        if arrays is None:
            return None
        found = from_flower(arrays, joined[0])
        merged |= _split(found, rest[0]) if elementwise else found
        for reply in replies:  # whose records only the garbage collector would free
            reply.content.array_records[ARRAYS].clear()
    return {name: merged[name] for name in like}


def _join(weights: Weights) -> Weights:
    """Small tensors of one type as one, by the name of the first: Flower packs tensor by tensor, which takes longer
    than all else where there are many small ones. Large ones stay as they are: another copy of them takes memory.
    """
    joined = {}
    for names in _together(weights):
        flat = [weights[name].reshape(-1) for name in names]
        joined[names[0]] = flat[0] if len(flat) == 1 else np.concatenate(flat)
    return joined


def _split(joined: Weights, like: Weights) -> Weights:
    """The inverse of ``_join``."""
    found: Weights = {}
    for names in _together(like):
        ends = np.cumsum([like[name].size for name in names])
        for name, array in zip(names, np.split(joined[names[0]], ends[:-1]), strict=True):
            found[name] = array.reshape(like[name].shape)
    return found


def _together(weights: Weights) -> list[list[str]]:
    return small_together(weights, lambda array: array.nbytes < _LARGE)


def to_sample_with(strategy: Strategy, weights: Weights) -> ArrayRecord:
    """What a strategy is given of the weights when it chooses the sites: nothing where it only passes them on."""
    return ArrayRecord() if type(strategy) in _ELEMENTWISE else to_flower(weights)


def to_flower(weights: Weights) -> ArrayRecord:
    """Weights as strategies take them: one entry a tensor."""
    return ArrayRecord({name: Array(array) for name, array in weights.items()})


def from_flower(arrays: ArrayRecord, like: Weights) -> Weights:
    """Weights as strategies give them; raises ``MessageError`` where a strategy made something that is not finite."""
    weights: Weights = {}
    for name, item in arrays.items():
        # Some strategies compute in double precision; the weights keep their own.
        weights[name] = array = item.numpy().astype(like[name].dtype, copy=False)
        if not np.isfinite(array).all():
            raise MessageError(f"aggregated {name}", "must be finite")
    return weights


def _parts(like: Weights, updates: int, elementwise: bool) -> Iterator[list[str]]:
    names: list[str] = []
    filled = 0
    for name, array in like.items():
        if elementwise and names and filled + array.nbytes * updates > _PART_BYTES:
            yield names
            names, filled = [], 0
        names.append(name)
        filled += array.nbytes * updates
    if names:
        yield names


def _with_content(update: KeptUpdate, weights: Weights) -> Message:
    metrics = MetricRecord({EXAMPLES: update.examples, **({} if update.loss is None else {"loss": update.loss})})
    update.reply.content = RecordDict({ARRAYS: to_flower(weights), METRICS: metrics})
    return update.reply
