"""Numbers and specs as readers see them. An unknown value is an en dash."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from medpfl.core.rounds import Epsilons
from medpfl.core.verdicts import RECORDED, SUCCESS, UNDEFENDED
from medpfl.judging.types import Cell

__all__ = [
    "DASH",
    "attacker",
    "between",
    "brief",
    "epsilons",
    "known",
    "label",
    "model_argument",
    "model_words",
    "number",
    "percent",
    "percents",
    "several",
    "share",
    "shorten",
    "signed",
    "similarity",
]

DASH = "\u2013"


def known(value: object) -> bool:
    """Return True if there is a number to show: neither ``None`` nor NaN."""
    return value is not None and not (isinstance(value, float) and math.isnan(value))


def model_argument(spec: str) -> str:
    """Return a model's spec as an argument in a command; ``MODEL`` for one from a file, whose place pages do not tell.

    >>> model_argument("ResNet(18)"), model_argument("UserModel(call='make')"), model_argument("MLP() on (x - 0.5) / 1")
    ('"ResNet(18)"', 'MODEL', '"MLP()"')
    """
    from_file = ("UserModel(", "GivenModel(", "Checkpoint(")
    own = _ENTERING.sub("", spec)
    return "MODEL" if not own or own.startswith(from_file) else f'"{own}"'


_ENTERING = re.compile(
    r" on \(x - (?P<mean>[-+.,e0-9]+)\) / (?P<deviation>[-+.,e0-9]+)(?P<inferred> \(inferred .*\))?$"
)
"""The end of the spec of a model whose images enter in another range, see `medpfl.models.entering.Entering`."""
_OWN = re.compile(r"""(?:UserModel|GivenModel)\((?:call|name)=(['"])(?P<name>.*)\1\)""")
_TRAINED = re.compile(r"""Checkpoint\(trained=(['"])(?P<spec>.*?)\1(?:, .*?)??(?:, round=(?P<round>\d+))?\)""")


def several(value: str | Sequence[str] | None) -> list[str]:
    """Return a setting as a list, whether it holds one spec, several, or none."""
    return [value] if isinstance(value, str) and value else [str(one) for one in value or ()]


def model_words(spec: str) -> str:
    """Return a model's spec in words that need no knowledge of MedPFL's specs.

    >>> model_words("UserModel(call='Net') on (x - 0.508032) / 0.256024")
    "the user's own model Net, images normalized by mean 0.508 and standard deviation 0.256"
    >>> model_words("MLP() on (x - 0.5) / 0.5 (inferred from the images' values)")
    "MLP(), images normalized by mean 0.5 and standard deviation 0.5 (inferred from the images' values)"
    >>> model_words("Checkpoint(trained='LeNet()', round=3)"), model_words("LeNet(variant='idlg')")
    ('LeNet() after round 3 of its training', "LeNet(variant='idlg')")
    """
    if enters := _ENTERING.search(spec):
        mean, deviation = (_rounded(enters[name]) for name in ("mean", "deviation"))
        whole = model_words(spec[: enters.start()])
        return f"{whole}, images normalized by mean {mean} and standard deviation {deviation}{enters['inferred'] or ''}"
    if own := _OWN.fullmatch(spec):
        return f"the user's own model {own['name']}"
    if trained := _TRAINED.fullmatch(spec):
        return f"{model_words(trained['spec'])} after round {trained['round'] or 0} of its training"
    return spec


def _rounded(numbers: str) -> str:
    """Return numbers of a normalization, one for each color channel, with three digits."""
    return ", ".join(f"{float(one):.3g}" for one in numbers.split(","))


def number(value: float | None, style: str = ".2f") -> str:
    """Format a number with a typographic minus sign, or none if it rounds to 0; ``None`` and NaN become `DASH`.

    >>> number(0.125, ".1f"), number(-0.001), number(float("inf")), number(None) == DASH
    ('0.1', '0.00', '∞', True)
    """
    if value is None or not known(value):
        return DASH
    if math.isinf(value):
        return "\u221e" if value > 0 else "\u2212\u221e"
    text = format(value, style)
    return re.sub("^-", "\u2212", text) if re.search("[1-9]", text) else text.lstrip("-")


_MOST = 6
"""Maximum number of decimals that keep a number on its side of a threshold."""


def _decimals(value: float, threshold: float, fewest: int, above: bool) -> int:
    """Return the fewest decimals with which a rounded number stays on its side of a threshold."""

    def passes(number: float) -> bool:
        return number > threshold if above else number >= threshold

    return next((d for d in range(fewest, _MOST) if passes(float(f"{value:.{d}f}")) == passes(value)), _MOST)


def similarity(ssim: float | None, threshold: float = SUCCESS, above: bool = False) -> str:
    """Format an SSIM; it gets more than two decimals where rounding would move it across the threshold.

    Args:
        ssim: the SSIM.
        threshold: the SSIM that counts.
        above: True if only a larger value passes the threshold, False if an equal one does, too.

    >>> similarity(0.93), similarity(0.896), similarity(0.8999), similarity(0.9)
    ('0.93', '0.896', '0.8999', '0.90')
    """
    if ssim is None or not known(ssim):
        return number(ssim)
    return number(ssim, f".{_decimals(ssim, threshold, 2, above)}f")


def share(threshold: float) -> str:
    """Format a threshold for rates in percent, without rounding it.

    >>> share(0.2), share(0.125), share(0.005)
    ('20 %', '12.5 %', '0.5 %')
    """
    return f"{100 * threshold:g} %"


def percent(rate: float | None) -> str:
    """Format a rate in percent; only exactly 0 and 1 become ``0 %`` and ``100 %``.

    >>> percent(0.79), percent(1), percent(0.999), percent(0.001)
    ('79 %', '100 %', '>99 %', '<1 %')
    """
    if rate is None or not known(rate):
        return DASH
    if 0 < rate <= 0.005:
        return "<1 %"
    return ">99 %" if 0.995 <= rate < 1 else f"{100 * rate:.0f} %"


def between(low: float | None, high: float | None, style: str = ".2f") -> str:
    """Format an interval, or return an en dash if an end is unknown."""
    if not (known(low) and known(high)):
        return DASH
    return f"{number(low, style)}{DASH}{number(high, style)}"


def percents(low: float | None, high: float | None, threshold: float | None = None, above: bool = False) -> str:
    """Format an interval for a rate: ``58-93 %``, with an en dash.

    Args:
        low, high: the ends, in [0, 1].
        threshold: the share with which both ends are compared; an end gets decimals where rounding would move it
            across. ``None``: they are compared with none.
        above: True if only a larger end passes the threshold, False if an equal one does, too.

    >>> percents(0.0, 0.204) == f"0{DASH}20 %", percents(0.0, 0.195, 0.2) == f"0{DASH}19.5 %"
    (True, True)
    """
    if low is None or high is None or not (known(low) and known(high)):
        return DASH
    ends = [round(100 * end, 9) for end in (low, high)]
    places = [0 if threshold is None else _decimals(end, round(100 * threshold, 9), 0, above) for end in ends]
    return DASH.join(number(end, f".{d}f") for end, d in zip(ends, places, strict=True)) + " %"


def epsilons(spent: Epsilons | None, joint: str = ", ", unit: str = " ({})") -> str:
    """Format epsilon with its privacy unit; `DASH` if there is none.

    >>> epsilons((("image", 2.0), ("client", 5.69))), epsilons((("image", 3.25),), unit=" for one {}")
    ('2 (image), 5.69 (client)', '3.25 for one image')
    """
    known_units = [number(value, ".3g") + (unit.format(name) if name else "") for name, value in spent or ()]
    return joint.join(known_units) or DASH


def label(spec: str) -> str:
    """Return a spec without empty brackets, and with long fractions cut to four digits.

    >>> label("iDLG()"), label("TopK(keep=0.1) | Sign()"), label("NoDefense()")
    ('iDLG', 'TopK(keep=0.1) | Sign', 'no defense')
    >>> label("LaplaceNoise(scale=0.0033333333333333335)")
    'LaplaceNoise(scale=0.003333)'
    """
    special = {UNDEFENDED: "no defense", RECORDED: "recorded update"}
    return special.get(spec) or _LONG.sub(lambda found: f"{float(found[0]):.4g}", spec.replace("()", ""))


_LONG = re.compile(r"\b\d+\.\d{7,}(e-?\d+)?\b")


def attacker(cell: Cell) -> str:
    """Return the cell's attack, marked naive or adaptive where two cells would otherwise look alike.

    >>> from medpfl.judging.types import Rate
    >>> attacker(Cell(attack="iDLG()", defense="QSGD()", knows_defense=False))
    'iDLG, naive'
    >>> attacker(Cell(attack="iDLG()", defense="QSGD()", knows_defense=True, false_security_ssim=Rate(0.25)))
    'iDLG, adaptive'
    """
    knows = cell.knows_defense
    gains = (cell.false_security_asr, cell.false_security_ssim, cell.false_security_identified)
    paired = any(known(gain.value) for gain in gains)
    return label(cell.attack) + (", naive" if knows is False else ", adaptive" if knows and paired else "")


def signed(value: float | None, show: Callable[[float], str]) -> str:
    """Format a difference with its sign.

    >>> signed(0.25, percent), signed(-0.5, percent), signed(0.0, percent)
    ('+25 %', '−50 %', '0 %')
    """
    if value is None or not known(value):
        return DASH
    return ("+" if value > 0 else "\u2212" if value < 0 else "") + show(abs(value))


def shorten(text: str, most: int) -> str:
    """Cut a text in the middle to at most `most` characters, because specs often differ at their ends.

    >>> shorten("LaplaceNoise(scale=0.01)", 15)
    'LaplaceN…=0.01)'
    """
    end = most // 3 + 1
    return text if len(text) <= most else f"{text[: most - end - 1]}\u2026{text[-end:]}"


def brief(specs: Iterable[str], most: int = 40) -> dict[str, str]:
    """Return a short name for each spec; long arguments are dropped unless two specs would then look alike.

    >>> brief(["A(x=1)", "B(y=2, z=C(3)) | D()"], most=10)
    {'A(x=1)': 'A(x=1)', 'B(y=2, z=C(3)) | D()': 'B(…) | D'}
    """
    short = {spec: label(spec) if len(label(spec)) <= most else _elide(label(spec)) for spec in specs}
    counts = Counter(short.values())
    return {spec: name if counts[name] == 1 else label(spec) for spec, name in short.items()}


def _elide(spec: str) -> str:
    kept, depth = "", 0
    for letter in spec:
        depth -= letter == ")"
        kept += letter if depth == 0 else ""
        if letter == "(":
            kept += "(\u2026" if depth == 0 else ""
            depth += 1
    return kept.replace("((", "(")
