"""Numbers and names as findings, notes and tables print them."""

from __future__ import annotations

from collections.abc import Iterable

from gnnscale.contract.scaling_results import Estimate

TARGET_NAMES = {"loss": "loss", "energy_mae": "energy error", "force_mae": "force error"}
GREEK_LETTERS = {"alpha": "α", "beta": "β", "gamma": "γ"}


def with_greek_letters(formula: str) -> str:
    """Turn `L = E + A/N^alpha` into `E + A/N^α`."""
    text = formula.removeprefix("L = ")
    for name, letter in GREEK_LETTERS.items():
        text = text.replace(name, letter)
    return text


def format_percent(share: float, digits: int = 0, sign: bool = False) -> str:
    """Format a share in per cent; small shares get one more digit, so that 0.4 % is not printed as 0 %."""
    digits = max(digits, 1 if abs(share) < 0.095 else 0)
    return f"{100 * share:{'+' if sign else ''}.{digits}f} %".replace("-", "−")


def join_names(names: Iterable[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def format_estimate(e: Estimate, factor: float = 1.0) -> str:
    """Format a value with its interval, or only its upper end where it cannot be distinguished from 0."""
    low, high = (format_number(v * factor) for v in e.interval)
    if e.low == 0 or e.value == 0:
        return f"< {high}" if e.high else "0 (not seen)"
    value = format_number(e.value * factor)
    return f"{value} [{low}, {high}]" if e.has_interval else value


def format_number(value: float) -> str:
    """Format three significant digits; powers of ten only where a plain number would be long, a dash for NaN."""
    if value != value:
        return "–"
    return f"{value:.3g}" if abs(value) < 1000 or abs(value) >= 1e6 else f"{float(f'{value:.3g}'):,.0f}"
