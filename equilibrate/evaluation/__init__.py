"""How harmful, how willing and how helpful a policy is, always with its interval.

judges           prompts and answers -> verdicts, by rules or any function; at which word
                 refusals begin
refusals         the rules: full refusal, partial refusal or compliance, in seven languages
agreement        a judge against labelled answers, and on harmless look-alikes
labelled_answers files of such answers, in any columns
judge_plugins    a judge by its name: ours below, or one that another package registers
model_judge      verdicts of a cost model; scores of answers
endpoint_judge   verdicts of a language model behind a chat endpoint
guard_judge      verdicts of a guard model behind such an endpoint
served_model     conversations -> replies of such an endpoint
statistics       numbers -> an estimate with a 95 % interval
tables           verdicts -> the table of a report; two tables -> their paired difference
arena            scores of two policies -> who wins where, and how safely
strategies       prompts -> answers under an instruction, exemplars or self-check; what it costs
pareto           policies -> those that no other beats, the area they dominate, their height

Nothing here imports torch, transformers or openai before it is used.
"""

from equilibrate.data.rows import check_disjoint
from equilibrate.evaluation.arena import Arena, arena
from equilibrate.evaluation.judge_plugins import judge_names, load_judge
from equilibrate.evaluation.judges import (
    CallableJudge,
    Judge,
    RefusalMatcher,
    RefusalPosition,
    Verdict,
    helpfulness_by,
    refusal_histogram,
)
from equilibrate.evaluation.model_judge import AnswerScorer
from equilibrate.evaluation.pareto import gap_at_equal_harm, hypervolume, pareto_front
from equilibrate.evaluation.served_model import Message, Messages, ServedModel
from equilibrate.evaluation.statistics import (
    MIN_CLAIMED,
    Estimate,
    mean_interval,
    paired_difference,
    paired_rate_difference,
    wilson_interval,
)
from equilibrate.evaluation.strategies import STRATEGIES, SafetyRates, run_strategy, safety_rates
from equilibrate.evaluation.tables import (
    EvaluationTable,
    compare,
    pool_over_seeds,
    tabulate,
    win_rates,
)

__all__ = [
    "MIN_CLAIMED",
    "STRATEGIES",
    "AnswerScorer",
    "Arena",
    "CallableJudge",
    "Estimate",
    "EvaluationTable",
    "Judge",
    "Message",
    "Messages",
    "RefusalMatcher",
    "RefusalPosition",
    "SafetyRates",
    "ServedModel",
    "Verdict",
    "arena",
    "check_disjoint",
    "compare",
    "gap_at_equal_harm",
    "helpfulness_by",
    "hypervolume",
    "judge_names",
    "load_judge",
    "mean_interval",
    "paired_difference",
    "paired_rate_difference",
    "pareto_front",
    "pool_over_seeds",
    "refusal_histogram",
    "run_strategy",
    "safety_rates",
    "tabulate",
    "wilson_interval",
    "win_rates",
]
