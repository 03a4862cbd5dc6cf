"""Judges by name, ours and other people's.

Another package adds one by an entry point to a class or function whose keyword arguments are the
judge's options and which gives a `Judge`:

    [project.entry-points."equilibrate.judges"]
    my_guard = "my_package.judges:MyGuard"
"""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from equilibrate.config.base import JudgeConfig
from equilibrate.config.files import parse_settings, require_known
from equilibrate.errors import ConfigError
from equilibrate.evaluation.judges import CallableJudge, Judge, Verdict, helpfulness_by
from equilibrate.sandbox.oracle import Oracle
from equilibrate.types import Prompt

GROUP = "equilibrate.judges"
# Ours are not registered in pyproject.toml: an editable install keeps the entry points of the day
# it was made, and a new one would be missing until everybody installs again.
BUILT_IN: Mapping[str, str] = {
    "refusals": "equilibrate.evaluation.judges:RefusalMatcher",
    "oracle": "equilibrate.evaluation.judge_plugins:oracle_judge",
    "cost_model": "equilibrate.evaluation.model_judge:CostModelJudge",
    "openai": "equilibrate.evaluation.endpoint_judge:EndpointJudge",
    "guard": "equilibrate.evaluation.guard_judge:GuardJudge",
    "combined": "equilibrate.evaluation.judge_plugins:CombinedJudge",
}
COMBINED = "combined"
_REFUSALS = ("refused", "partly_refused")
_NUMBERS = ("int", "float")
_PLAIN_TYPES: Mapping[str, tuple[type, ...]] = {
    "bool": (bool,),
    "int": (int,),
    "float": (int, float),
    "str": (str,),
    "Mapping": (Mapping,),
}


def judge_names() -> list[str]:
    """Every name that `load_judge` knows here, in alphabetical order."""
    return sorted(_registered())


def load_judge(name: str, /, **options: Any) -> Judge:
    """The judge of that name.

    Example: load_judge("cost_model", folder="runs/a/cost", reward="runs/a/reward").
    Raises: ConfigError for an unknown name or option, naming the nearest and all that are known, or
        for a value of another type; and what the judge itself raises.
    """
    judge: Judge = _checked(name, options)(**options)
    return judge


def check_judge(name: str, options: Mapping[str, Any]) -> None:
    """What can be said of it without loading any model. Raises: ConfigError as `load_judge`."""
    _checked(name, options)
    if name == COMBINED:
        for part in _parts(options).values():
            check_judge(part.name, part.options)


def _checked(name: str, options: Mapping[str, Any]) -> Callable[..., Any]:
    registered = _registered()
    require_known("judge", name, registered)
    factory = _load(name, registered[name])
    _require_options(name, factory, options)
    return factory


def source_of(verdict: str, name: str, options: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Name and options of who gives a verdict: of `combined` one of its judges."""
    if name != COMBINED:
        return name, dict(options)
    part = _parts(options)[_role_of(verdict)]
    return part.name, part.options


def parts_of(name: str, options: Mapping[str, Any]) -> dict[str, JudgeConfig]:
    """The judges that make one, by role; of most it is that one alone."""
    return _parts(options) if name == COMBINED else {"": JudgeConfig(name=name, options=options)}


class CombinedJudge:
    """Harm, and all that is not named here, by one judge and refusals by another."""

    def __init__(
        self,
        *,
        harm: Mapping[str, Any],
        refusal: Mapping[str, Any] | None = None,
        helpfulness: Mapping[str, Any] | None = None,
    ) -> None:
        """Args: harm, refusal, helpfulness: a judge each as {name, options}; the rules of
            `refusals` and the judge of harm where none is given.
        Raises: ConfigError for what is no judge, and what the judges raise.
        """
        given = {"harm": harm, "refusal": refusal, "helpfulness": helpfulness}
        self._judges = {
            role: load_judge(part.name, **part.options) for role, part in _parts(given).items()
        }
        self.helpfulness_by = helpfulness_by(self._judges.get("helpfulness", self._judges["harm"]))
        self.name = "; ".join(f"{role} by {one.name}" for role, one in self._judges.items())

    def source_of(self, verdict: str) -> Judge:
        """Who gives a verdict, as the function of that name."""
        return self._judges[_role_of(verdict)]

    def judge(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[Verdict]:
        told = {role: one.judge(prompts, responses) for role, one in self._judges.items()}
        helpful = told.get("helpfulness", told["harm"])
        return [
            replace(
                verdict,
                refused=refusal.refused,
                partly_refused=refusal.partly_refused,
                helpfulness=useful.helpfulness,
                unreadable=verdict.unreadable or refusal.unreadable or useful.unreadable,
            )
            for verdict, refusal, useful in zip(told["harm"], told["refusal"], helpful, strict=True)
        ]


def _role_of(verdict: str) -> str:
    return "refusal" if verdict in _REFUSALS else "harm"


def _parts(options: Mapping[str, Any]) -> dict[str, JudgeConfig]:
    given = {"refusal": {"name": "refusals"}} | {k: v for k, v in options.items() if v is not None}
    parts = {}
    for role in ("harm", "refusal", *given.keys() - {"harm", "refusal"}):
        parts[role] = part = parse_settings(JudgeConfig, given[role])
        if part.name in ("", COMBINED) or part.agreement:
            raise ConfigError(
                f"option {role} ({given[role]}) of judge {COMBINED!r} must name another judge and "
                "its options and nothing else, for example {name: refusals}"
            )
    return parts


def oracle_judge(*, seed: int = 0) -> CallableJudge:
    """The exact judge of the built-in world. Args: seed: `sandbox.seed` of the run."""
    return CallableJudge("oracle", Oracle.from_seed(seed).judge)


def _registered() -> dict[str, set[str]]:
    """`package.module:attribute` by name; more than one where packages claim the same name."""
    found: defaultdict[str, set[str]] = defaultdict(set)
    for name, value in BUILT_IN.items():
        found[name].add(value)
    for point in entry_points(group=GROUP):
        found[point.name].add(point.value)
    return dict(found)


def _load(name: str, values: Iterable[str]) -> Callable[..., Any]:
    first, *others = sorted(values)
    if others:
        raise ConfigError(
            f"judge ({name!r}) must be one, and it is {first} and {', '.join(others)}; "
            "uninstall all but one"
        )
    try:
        factory: Callable[..., Any] = EntryPoint(name, first, GROUP).load()
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"judge ({name!r}) is registered as {first}, which cannot be imported ({error}); "
            "repair or uninstall that package"
        ) from error
    return factory


def _require_options(name: str, factory: Callable[..., Any], options: Mapping[str, object]) -> None:
    parameters = inspect.signature(factory).parameters
    if any(one.kind is one.VAR_KEYWORD for one in parameters.values()):
        return
    for option in options:
        require_known(f"option of judge {name!r}", option, parameters)
    for option, one in parameters.items():
        if one.default is one.empty and options.get(option) is None:
            raise ConfigError(
                f"judge {name!r} needs the option {option}; its options are {', '.join(parameters)}"
            )
    for option, value in options.items():
        _require_type(name, parameters[option], value)


def _require_type(name: str, option: inspect.Parameter, value: object) -> None:
    """Only for plain annotations: `seed="3"` would silently make another world than `seed=3`."""
    # A string in modules that postpone annotations, a class in others.
    annotation = str(getattr(option.annotation, "__name__", option.annotation))
    kind = annotation.removesuffix(" | None").partition("[")[0]
    wanted = _PLAIN_TYPES.get(kind, (object,))
    if value is None and annotation.endswith(" | None"):
        return
    # To Python a bool is an int.
    if not isinstance(value, wanted) or (isinstance(value, bool) and kind in _NUMBERS):
        shape = " {key: value, ...}" if kind == "Mapping" else ""
        raise ConfigError(
            f"option {option.name} ({value!r}) of judge {name!r} must be of type {kind}{shape}"
        )
