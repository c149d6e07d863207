"""The roles of parts. To add a part: one file, one line in its package's ``__all__``, one test row."""

from medpfl.core.roles.defense import NO_DEFENSE, Composed, Defense, NoDefense, parts_of, promising_parts
from medpfl.core.roles.moments import UNITS, Aggregation, State, Unit
from medpfl.core.roles.parts import Attack, DataSource, Metric, Model, metric

__all__ = [
    "NO_DEFENSE",
    "UNITS",
    "Aggregation",
    "Attack",
    "Composed",
    "DataSource",
    "Defense",
    "Metric",
    "Model",
    "NoDefense",
    "State",
    "Unit",
    "metric",
    "parts_of",
    "promising_parts",
]
