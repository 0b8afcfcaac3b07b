"""How do attacks compare at every rate of false alarms? One chart with logarithmic axes, where few alarms show."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from client.audit.strength import Strength
from client.audit.words import attack_name
from shared.drawing import FAINT, WIDTH, drawn

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PENS: list[tuple[str, Any]] = [("#0072B2", "-"), ("#00805E", (0, (5, 1.6))), ("#C44E00", (0, (1.2, 1.3)))]


def curves(attacks: Sequence[Strength], others: int) -> str:
    """Members found over false alarms, from one false alarm on."""
    lowest = 0.5 / others

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        axes.plot([lowest, 1.0], [lowest, 1.0], color=FAINT, linewidth=1.2, label="Guessing")
        for (colour, dash), attack in reversed(list(zip(_PENS, attacks, strict=False))):
            false_alarms, members = zip(*[(max(a, lowest), max(b, lowest)) for a, b in attack.curve], strict=True)
            axes.plot(false_alarms, members, color=colour, linestyle=dash, label=_label(attack))
        axes.set(xscale="log", yscale="log", xlim=(lowest, 1.05), ylim=(lowest, 1.05), aspect="equal", anchor="W")
        axes.set_xlabel("Held-out patients taken for members")
        axes.set_ylabel("Members found")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(lambda share, _: f"{100 * share:g}\u00a0%")
            axis.set_minor_formatter("")
        handles, labels = axes.get_legend_handles_labels()
        axes.legend(handles[::-1], labels[::-1], handlelength=3.4, loc="center left", bbox_to_anchor=(1.04, 0.5))

    told = "; ".join(f"{_label(attack)}" for attack in attacks)
    return drawn("attacks", f"Members found against false alarms, both logarithmic. {told}.", (WIDTH, 3.9), paint)


def _label(attack: Strength) -> str:
    first, _, rest = attack_name(attack.attack).partition(", ")
    return f"{first}\n{rest} (area {attack.area:.2f})" if rest else f"{first} (area {attack.area:.2f})"
