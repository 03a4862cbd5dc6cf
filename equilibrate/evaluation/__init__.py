"""How harmful, how willing and how helpful a policy is, always with its interval.

judges      prompts and answers -> verdicts
statistics  numbers -> an estimate with a 95 % interval
tables      verdicts -> the table of a report; two tables -> their paired difference
pareto      checkpoints -> those that no other beats
leakage     evaluation prompts never train
"""

from equilibrate.evaluation.judges import CallableJudge, Judge, RefusalMatcher, Verdict
from equilibrate.evaluation.leakage import check_disjoint
from equilibrate.evaluation.pareto import pareto_front
from equilibrate.evaluation.statistics import (
    Estimate,
    mean_interval,
    paired_difference,
    wilson_interval,
)
from equilibrate.evaluation.tables import EvaluationTable, compare, pool_over_seeds, tabulate

__all__ = [
    "CallableJudge",
    "Estimate",
    "EvaluationTable",
    "Judge",
    "RefusalMatcher",
    "Verdict",
    "check_disjoint",
    "compare",
    "mean_interval",
    "paired_difference",
    "pareto_front",
    "pool_over_seeds",
    "tabulate",
    "wilson_interval",
]
