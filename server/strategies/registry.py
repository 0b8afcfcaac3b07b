"""Which strategy of Flower turns updates into the next weights? Any of these, by name, with its own arguments."""

from __future__ import annotations

import inspect

from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import Strategy

from shared.config import Study
from shared.errors import ConfigError
from shared.messages import ARRAYS, CONFIG, EXAMPLES

STRATEGIES: dict[str, type[flower.FedAvg]] = {
    "fedavg": flower.FedAvg,
    "fedavgm": flower.FedAvgM,
    "fedprox": flower.FedProx,
    "fedadagrad": flower.FedAdagrad,
    "fedadam": flower.FedAdam,
    "fedyogi": flower.FedYogi,
    "fedmedian": flower.FedMedian,
    "fedtrimmedavg": flower.FedTrimmedAvg,
    "krum": flower.Krum,
    "multikrum": flower.MultiKrum,
    "bulyan": flower.Bulyan,
}


def build_strategy(study: Study) -> Strategy:
    """The strategy of a study.

    Raises:
        ConfigError: an unknown name, an argument that the strategy does not take, or a contradiction.
    """
    config = study.strategy
    kind = STRATEGIES.get(config.name)
    if kind is None:
        rule = f"must be one of {', '.join(STRATEGIES)}"
        raise ConfigError("strategy.name", rule, value=config.name)
    if config.name == "fedprox" and not config.proximal_mu:
        raise ConfigError("strategy.proximal_mu", "must be > 0 with fedprox", value=config.proximal_mu)
    arguments: dict[str, object] = {
        "fraction_train": config.fraction,
        "fraction_evaluate": 1.0,
        "min_train_nodes": config.minimum_sites,
        "min_evaluate_nodes": config.minimum_sites,
        "min_available_nodes": config.minimum_sites,
        "weighted_by_key": EXAMPLES,
        "arrayrecord_key": ARRAYS,
        "configrecord_key": CONFIG,
    }
    if config.name == "fedprox":
        arguments["proximal_mu"] = config.proximal_mu
    taken = inspect.signature(kind.__init__).parameters
    for name in config.arguments:
        if name not in taken or name in arguments:
            own = sorted(set(taken) - set(arguments) - {"self", "kwargs"})
            remedy = f"It takes {', '.join(own)}." if own else "It takes none."
            raise ConfigError(f"strategy.arguments.{name}", f"is not an argument of {config.name}", remedy=remedy)
    try:
        return kind(**arguments, **config.arguments)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise ConfigError("strategy.arguments", f"must suit {config.name}", value=str(error)) from None
