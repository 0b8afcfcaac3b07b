"""How is a figure said on the page? Hidden counts as such, everything else as people write numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from client.check.suppression import WITHHELD, Cell, Shown, share

NONE = "\u2013"
VERDICTS = {"pass": "Pass", "warn": "Have a look", "fail": "Fail"}


def count(value: Shown) -> str:
    """1,234; <5; or 'not shown'."""
    return f"{value:,}" if isinstance(value, int) else "not shown" if value == WITHHELD else value.replace("<", "< ")


def most(part: Shown, rest: Shown) -> str:
    """A count; 'all but < 5' where it is hidden because few are not among it."""
    return f"all but {count(rest)}" if part == WITHHELD and rest != WITHHELD and isinstance(rest, str) else count(part)


def percent(part: Shown, whole: Shown) -> str:
    """The share, where both counts are shown; never 0 or 100 unless it is."""
    fraction = share(part, whole)
    if fraction is None:
        return ""
    if 0 < fraction < 0.005 or 0.995 < fraction < 1:
        return "< 1\u00a0%" if fraction < 0.5 else "> 99\u00a0%"
    return f"{fraction:.0%}".replace("%", "\u00a0%")


def unbroken(share: str) -> str:
    """A share in words, its percent sign on the line of its number."""
    return share.replace(" %", "\u00a0%")


def number(value: float | None) -> str:
    """Three digits, without an exponent."""
    if value is None:
        return NONE
    text = f"{value:.3g}"
    return f"{value:,.0f}" if "e" in text else text.replace("-", "\u2212")


def between(quantiles: Mapping[str, float], low: str, high: str) -> str:
    """Two quantiles, where both are told."""
    told = low in quantiles and high in quantiles
    return f"{number(quantiles[low])} to {number(quantiles[high])}" if told else NONE


def years(span: tuple[int, int] | None) -> str:
    """A span of years."""
    if span is None:
        return NONE
    return str(span[0]) if span[0] == span[1] else f"{span[0]}\u2013{span[1]}"


def capital(name: str) -> str:
    """A name as the beginning of a sentence; names of files and settings stay as they are."""
    return name if "." in name or "/" in name else name[:1].upper() + name[1:]


def headline(verdict: str, faults: int, concerns: int) -> str:
    """What the check came to, in one sentence."""
    points = f"{concerns} point{'' if concerns == 1 else 's'} to look at"
    if verdict == "pass":
        return "The folder keeps the contract, and nothing in it calls for a second look."
    if verdict == "warn":
        return f"The folder keeps the contract. There {'is' if concerns == 1 else 'are'} {points}."
    if faults:
        also = f" There {'is' if concerns == 1 else 'are'} also {points}." if concerns else ""
        return (
            f"The folder breaks {faults} rule{'' if faults == 1 else 's'} of the contract and cannot take part.{also}"
        )
    return "The folder keeps the contract, but cannot take part as it is."


def by_year(devices: Sequence[tuple[str, Cell]]) -> list[str]:
    """The years of any of the cells, in order."""
    return sorted({year.name for _, device in devices for year in device.group("year")})
