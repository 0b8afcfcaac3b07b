"""How does a message become work at a site? Decode, do, encode; nothing else."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from client import work
from client.approvals import NotApprovedError
from client.secure_aggregation import take_part
from shared.config import EVALUATE, FINETUNE, PRETRAIN, SURVEY, SecAgg
from shared.errors import FedretinaError, MessageError
from shared.messages import (
    AWAITS_APPROVAL,
    FAILED_AT_SITE,
    Task,
    decode_task,
    error_reply,
    evaluation_content,
    survey_content,
    update_content,
)

SITE = "site"  # key of the site folder in a node's configuration

log = logging.getLogger(__name__)
Handler = Callable[[Message, Context], Message]


def site_folder(context: Context) -> Path:
    """The folder that this node serves."""
    return Path(str(context.node_config[SITE]))


def build_app(
    folder_of: Callable[[Context], Path] = site_folder,
    admit: Callable[[Task], AbstractContextManager[None]] = lambda task: nullcontext(),
) -> ClientApp:
    """The ClientApp of a site.

    Args:
        folder_of: tells which folder a node serves.
        admit: what a task is done within: the site's gate and its ledger, which raise for what the site does not do or
            let go. A simulation, from which nothing leaves, has neither.
    """
    app = ClientApp()

    def handler(stages: Sequence[str], do: Callable[[Path, Task], RecordDict]) -> Handler:
        def handle(message: Message, context: Context) -> Message:
            try:
                task = decode_task(message.content)
                if task.stage not in stages:  # or one could train at the price of a survey
                    raise MessageError("task.stage", f"must be one of {', '.join(stages)} here", value=task.stage)
                answer = take_part if isinstance(task.study.secure_aggregation, SecAgg) else do
                with admit(task):
                    content = answer(folder_of(context), task)
                return Message(content, reply_to=message)
            except FedretinaError as error:
                log.error("%s", error)
                folder = folder_of(context)  # how a hospital names its folders is its own affair
                reason = error.for_others().replace(str(folder.resolve()), "").replace(str(folder), "")
                may_come = isinstance(error, NotApprovedError) and error.may_come
                return error_reply(message, reason, AWAITS_APPROVAL if may_come else FAILED_AT_SITE)
            except Exception as error:  # its text may name patients or paths: it stays at the site
                reference = secrets.token_hex(4)
                log.exception("The task failed, reference %s", reference)
                return error_reply(message, f"{type(error).__name__}, reference {reference} in the site's log")

        return handle

    app.query()(handler([SURVEY], lambda folder, task: survey_content(work.survey(folder, task))))
    app.train()(handler([PRETRAIN, FINETUNE], lambda folder, task: update_content(work.train_round(folder, task))))
    app.evaluate()(handler([EVALUATE], lambda folder, task: evaluation_content(work.evaluate_split(folder, task))))
    return app


app = build_app()
