"""A policy that is given as an adapter, made whole before anything else reads it."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar, cast

from equilibrate.config.align import AlignConfig, Journey
from equilibrate.config.fit import FitConfig
from equilibrate.config.train import TrainConfig
from equilibrate.run.disk import as_resource_error, require_writable
from equilibrate.run.door import check_inputs, check_journey

C = TypeVar("C", bound=TrainConfig | FitConfig | AlignConfig)


def with_whole_policy(config: C) -> C:
    """The same settings, with the adapter merged into its base: made once, in the run's stages.

    Raises: DataError or ResourceError, before anything is made, for an adapter that cannot be
        merged or whose base is not here; as `check_inputs` and `check_journey`.
    """
    seen = with_base_policy(config)
    if seen is config:
        return config
    from equilibrate.run.contents import Contents  # late: as below
    from equilibrate.run.folder import say, stages_of
    from equilibrate.run.stages import Stage, run_stage

    _check(seen)
    folder, base = Path(_policy_of(config)).absolute(), Path(_policy_of(seen))
    run = Path(config.output).resolve()
    require_writable(run)
    with as_resource_error(run):
        stages = stages_of(run)
        stages.mkdir(parents=True, exist_ok=True)
        contents = Contents(stages)
        stage = Stage(
            name="policy",
            format=1,
            inputs={"adapter": contents.of(folder), "base": contents.of(base)},
            libraries=(),  # as a plain folder would be, which outlives them
            make=lambda out: _merge(base, folder, out),
        )
        if not stage.is_made(stages):
            say(f"policy: the adapter {folder} is merged into {base}")
        return _with_policy(config, run_stage(stage, stages))


def with_base_policy(config: C) -> C:
    """The same settings for those who make nothing: shapes and tokens are the base's.

    Raises: as `with_whole_policy`.
    """
    policy = _policy_of(config)
    if not policy:
        return config
    # Late: they load what the built-in world's settings need not wait for.
    from equilibrate.models.adapters import require_mergeable
    from equilibrate.models.folders import base_of, is_adapter_alone

    folder = Path(policy).absolute()
    if not is_adapter_alone(folder):
        return config
    require_mergeable(folder)
    return _with_policy(config, base_of(folder))


def _check(config: TrainConfig | FitConfig | AlignConfig) -> None:
    """A mistake elsewhere must not show after minutes of merging."""
    if isinstance(config, AlignConfig):
        check_journey(Journey(config))
    else:
        check_inputs(config)


def _merge(base: Path, adapter: Path, out: Path) -> None:
    from equilibrate.models.importing import import_model  # late: it loads what few runs need

    import_model(base, out, adapter=adapter)


def _policy_of(config: TrainConfig | FitConfig | AlignConfig) -> str:
    return config.policy if isinstance(config, AlignConfig) else config.data.policy


def _with_policy(config: C, policy: Path) -> C:
    if isinstance(config, AlignConfig):
        return config.model_copy(update={"policy": str(policy)})
    data = {"data": config.data.model_copy(update={"policy": str(policy)})}
    return cast(C, config.model_copy(update=data))
