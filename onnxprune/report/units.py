"""Figures in words: 25.6 M, 4.1 GMAC, 97.5 MB. What was not measured says so."""

from __future__ import annotations

NOT_MEASURED = "not measured"
_STEPS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
_PERCENT_METRICS = ("top1", "top5", "agreement", "accuracy")


def count(value: float | None) -> str:
    """A number of things with three digits and a decimal prefix."""
    return _scaled(value, "", small="{:,.0f}")


def macs(value: float | None) -> str:
    """Multiply-accumulates for one sample."""
    return _scaled(value, "MAC", small="{:,.0f}")


def size(value: float | None) -> str:
    """Bytes, in decimal units (1 MB is 10^6 bytes)."""
    return _scaled(value, "B", small="{:,.0f}")


def milliseconds(value: float | None) -> str:
    """A time given in milliseconds."""
    if value is None:
        return NOT_MEASURED
    if abs(value) >= 10_000:
        return f"{_three_digits(value / 1000)} s"
    if 0 < abs(value) < 0.01:
        return f"{_three_digits(value * 1000)} us"
    return f"{_three_digits(value)} ms"


def seconds(value: float | None) -> str:
    """A time given in seconds."""
    if value is None:
        return NOT_MEASURED
    if value >= 90:
        return f"{int(value) // 60} min {int(value) % 60} s"
    return f"{_three_digits(value)} s"


def percent(value: float | None, digits: int = 1) -> str:
    """A fraction in percent."""
    return NOT_MEASURED if value is None else f"{100 * value:.{digits}f} %"


def change(ratio: float | None) -> str:
    """A ratio after ÷ before as a change: 0.48 is -52 %."""
    if ratio is None:
        return NOT_MEASURED
    if ratio >= 10:
        return f"{_three_digits(ratio)}x"
    points = 100 * (ratio - 1)
    if -100 < points < -99.5:  # rounding would say that nothing is left
        return f"-{min(abs(points), 99.99):.2f} %"
    text = f"{abs(points):.{0 if abs(points) >= 10 else 1}f}"
    if float(text) == 0:
        return "no change"
    return f"{'-' if points < 0 else '+'}{text} %"


def speed(ratio: float | None) -> str:
    """A latency ratio after ÷ before as a speed: 0.5 is 2.00x faster."""
    if ratio is None or ratio <= 0:
        return NOT_MEASURED
    if 0.995 < ratio < 1.005:
        return "as fast"
    return f"{1 / ratio:.2f}x faster" if ratio < 1 else f"{ratio:.2f}x slower"


def metric(name: str, value: float | None) -> str:
    """The value of a metric: percent for the accuracies, four significant digits for the rest."""
    if value is None:
        return NOT_MEASURED
    if is_percent(name):
        return percent(value)
    return f"{value:.4g}"


def is_percent(name: str) -> bool:
    """True for metrics that are a fraction of the samples."""
    return name in _PERCENT_METRICS


def small(value: float | None) -> str:
    """A small error with two significant digits."""
    if value is None:
        return NOT_MEASURED
    return f"{value:.1e}".replace(".0e", "e") if 0 < abs(value) < 0.001 else f"{value:.2g}"


def _scaled(value: float | None, unit: str, small: str) -> str:
    if value is None:
        return NOT_MEASURED
    for step, prefix in _STEPS:
        # 999,950 would print as 1000 k: it is 1 M.
        if abs(value) >= step * 0.9995 and abs(value) >= 999.5:
            return f"{_three_digits(value / step)} {prefix}{unit}"
    return f"{small.format(value)} {unit}".rstrip()


def _three_digits(value: float) -> str:
    size = abs(value)
    if size >= 99.95:
        return f"{value:,.0f}"
    if size >= 9.995:
        return f"{value:.1f}"
    if size >= 0.9995 or size == 0:
        return f"{value:.2f}"
    return f"{value:#.3g}"


def printable(text: object) -> str:
    """``text`` without control and direction characters: names come from files that nobody has vetted."""
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in str(text))
