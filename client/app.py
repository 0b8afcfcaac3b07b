"""How does a message become work at a site? Decode, do, encode; nothing else."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from client import work
from shared.errors import FedretinaError
from shared.messages import decode_task, error_reply, evaluation_content, survey_content, update_content

SITE = "site"  # key of the site folder in a node's configuration

log = logging.getLogger(__name__)
Handler = Callable[[Message, Context], Message]


def site_folder(context: Context) -> Path:
    """The folder that this node serves."""
    return Path(str(context.node_config[SITE]))


def build_app(folder_of: Callable[[Context], Path] = site_folder) -> ClientApp:
    """The ClientApp of a site; ``folder_of`` tells which folder a node serves."""
    app = ClientApp()

    def handler(do: Callable[[Path, Message], RecordDict]) -> Handler:
        def handle(message: Message, context: Context) -> Message:
            try:
                return Message(do(folder_of(context), message), reply_to=message)
            except FedretinaError as error:
                log.error("%s", error)
                return error_reply(message, error.for_others())
            except Exception as error:  # its text may name patients or paths: it stays at the site
                log.exception("The task failed")
                return error_reply(message, f"{type(error).__name__}, see the log of the site")

        return handle

    app.query()(handler(lambda folder, m: survey_content(work.survey(folder, decode_task(m.content)))))
    app.train()(handler(lambda folder, m: update_content(work.train_round(folder, decode_task(m.content)))))
    app.evaluate()(handler(lambda folder, m: evaluation_content(work.evaluate_split(folder, decode_task(m.content)))))
    return app


app = build_app()
