"""The command line. Heavy libraries are imported inside a command: help and errors are quick."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import OmitArgPrefixes, Positional, UseAppendAction, arg

from equilibrate.config.arguments import Configs, MoreRuns, OtherRuns, Overrides, RunFolder
from equilibrate.data.commands import data, split
from equilibrate.errors import ConfigError, EquilibrateError, ResourceError
from equilibrate.fdc import commands as fdc_commands
from equilibrate.fdc import synthesize_commands
from equilibrate.fdc.asking import Endpoint
from equilibrate.fdc.commands import LabelOptions
from equilibrate.fdc.synthesize_commands import AnswersOptions, MhdOptions
from equilibrate.offline.commands import scorer

SANDBOX_CONFIG = Path("deploy/configs/sandbox.yaml")


def demo(overrides: Overrides = ()) -> int:
    """Align a small model in the built-in world, from nothing to a report."""
    code = train((SANDBOX_CONFIG,), overrides)
    if code == 0:
        from equilibrate.config.files import load_config

        output = load_config((SANDBOX_CONFIG,), overrides).output
        print(f"Read the report:       {Path(output, 'report.html')}")
        print(f"Serve the new model:   python -m equilibrate serve {output}")
    return code


def train(config: Configs = (), overrides: Overrides = ()) -> int:
    """Run, or resume, what the settings describe: models, PPO, evaluation, report."""
    from equilibrate.config.files import load_config

    settings = load_config(config, overrides)
    _require_siblings()
    from actors.launch import train as launch

    return launch(settings)


def fit(config: Configs = (), overrides: Overrides = ()) -> int:
    """Train a policy, a reward or cost model, or both in one, on labelled answers."""
    from equilibrate.config.files import load_settings
    from equilibrate.config.fit import FitConfig

    settings = load_settings(FitConfig, config, overrides)
    _require_siblings()
    from actors.fit import fit as launch

    return launch(settings)


def align(config: Configs = (), overrides: Overrides = ()) -> int:
    """From a chat model and labelled pairs to an aligned, measured model: all steps in one."""
    from equilibrate.config.align import AlignConfig
    from equilibrate.config.files import load_settings

    settings = load_settings(AlignConfig, config, overrides)
    _require_siblings()
    from actors.align import align as launch

    return launch(settings)


def study(
    file: Annotated[Positional[Path], arg(help="YAML file of a study.", metavar="STUDY")],
    report_only: Annotated[bool, arg(help="Run nothing; write the page and the summary.")] = False,
    document: Annotated[
        Path | None,
        arg(help="Markdown file; its section on this study is written anew.", metavar="FILE"),
    ] = None,
    take_in: Annotated[
        Path | None,
        arg(
            help="Results made elsewhere, added first: a results file, or a folder of JSON files.",
            metavar="PATH",
        ),
    ] = None,
    mask_direction: Annotated[
        bool, arg(help="Run nothing; say how the masks of its arms of `fit` turn the gradient.")
    ] = False,
) -> int:
    """Run, or go on with, a grid of runs, and say what it shows about its claims."""
    from equilibrate.config.study import load_study

    settings = load_study(file)
    _require_siblings()
    if mask_direction:
        from actors.mask_direction import measure_masks

        return measure_masks(settings)
    from actors.study import run_study

    return run_study(settings, report_only=report_only, document=document, take_in_from=take_in)


def evaluate(
    run: RunFolder,
    judge: Annotated[str, arg(help="Who judges; by default who judged before.")] = "",
    options: Annotated[
        Positional[tuple[str, ...]], arg(help="Options of the judge.", metavar="KEY=VALUE")
    ] = (),
) -> int:
    """Measure the aligned model of a run against its base again, by another judge if named."""
    from equilibrate.config.files import load_run_config, parse_options
    from equilibrate.config.fit import FitConfig
    from equilibrate.evaluation import load_judge

    # The folder may have moved since.
    config = load_run_config(run).model_copy(update={"output": str(run)})
    judged_by = load_judge(judge, **parse_options(options)) if judge else None
    _require_siblings()
    if isinstance(config, FitConfig):
        from actors.fit import evaluate_fit

        return evaluate_fit(config, run, judged_by)
    from actors.launch import evaluate as launch

    return launch(config, run, judged_by)


def judge(
    file: Annotated[Positional[Path], arg(help="Labelled answers.", metavar="FILE")],
    options: Annotated[
        Positional[tuple[str, ...]], arg(help="Options of the judge.", metavar="KEY=VALUE")
    ] = (),
    *,
    judge: Annotated[str, arg(help="Who is measured.", metavar="NAME")],
    positive: Annotated[
        UseAppendAction[tuple[str, ...]], arg(help="Label that the verdict means; repeat it.")
    ] = (),
    negative: Annotated[
        UseAppendAction[tuple[str, ...]], arg(help="Label of the rest; others are left out.")
    ] = (),
    verdict: Annotated[str, arg(help="harmful, refused, partly_refused or malformed.")] = "harmful",
    prompt_column: Annotated[str, arg(help="By default as the format of the file says.")] = "",
    response_column: Annotated[str, arg(help="Likewise.")] = "",
    label_column: Annotated[str, arg(help="Likewise, else `label`.")] = "",
    group_column: Annotated[str, arg(help="Count its values apart: a model, a class.")] = "",
    look_alikes: Annotated[
        Path | None, arg(help="Answers to harmless look-alikes, in the same columns.")
    ] = None,
    json: Annotated[Path | None, arg(help="Write it down for reports.", metavar="FILE")] = None,
    max_rejected_fraction: Annotated[float, arg(help="As `data` takes it.")] = 0.01,
) -> int:
    """Measure a judge against labelled answers. Returns 6 if it calls too many look-alikes."""
    from equilibrate.config.files import parse_options
    from equilibrate.data.rows import require_writable_file
    from equilibrate.evaluation import load_judge
    from equilibrate.evaluation.agreement import UNFIT, agree, write_agreement
    from equilibrate.evaluation.labelled_answers import AnswerColumns

    columns = AnswerColumns(
        prompt=prompt_column, response=response_column, label=label_column, group=group_column
    )
    if json is not None:
        require_writable_file(json, but=[file] if look_alikes is None else [file, look_alikes])
    read = parse_options(options)
    found = agree(
        load_judge(judge, **read), file, columns, name=judge, options=read, verdict=verdict,
        positive=positive, negative=negative, look_alikes=look_alikes,
        max_rejected_fraction=max_rejected_fraction,
    )  # fmt: skip
    print(found)
    if json is not None:
        write_agreement(json, found)
    return UNFIT if found.fit is False else 0


def report(run: RunFolder, more: MoreRuns = (), versus: OtherRuns = ()) -> int:
    """Write the HTML report of each run again; of several, print their figures as one table."""
    from equilibrate.report import paired_markdown, pooled_markdown, write_report

    for folder in (run, *more, *versus):
        print(write_report(folder))
    if versus:
        print("", paired_markdown((run, *more), versus), sep="\n")
    elif more:
        print("", pooled_markdown((run, *more)), sep="\n")
    return 0


def export(
    run: RunFolder,
    out: Annotated[Positional[Path], arg(help="Folder to be made.", metavar="OUT")],
    checkpoint: Annotated[
        str, arg(help="latest, best (highest reward within its bound) or an iteration.")
    ] = "latest",
) -> int:
    """Make a plain model folder of a checkpoint of a run, with its card."""
    _require_siblings()
    from actors.export import export as launch

    return launch(run, out, checkpoint)


def serve(
    run: RunFolder,
    port: Annotated[int, arg(help="Port on this machine; nothing else can reach it.")] = 8000,
) -> int:
    """Serve the aligned model of a run on this machine, OpenAI-compatible."""
    _require_siblings("deploy")
    from deploy.serve_app import serve as launch

    return launch(run, port)


def validate(
    config: Configs = (),
    overrides: Overrides = (),
    kind: Annotated[
        Literal["train", "fit", "align"], arg(help="Which command the settings are for.")
    ] = "train",
) -> int:
    """Check settings, and the files they name, without starting anything; print them in full."""
    from equilibrate.config.align import AlignConfig, Journey
    from equilibrate.config.files import RUN_KINDS, dump_config, load_settings
    from equilibrate.run.capacity import check_this_machine
    from equilibrate.run.disk import require_writable
    from equilibrate.run.door import check_inputs, check_journey, proposed_budget
    from equilibrate.run.policies import with_base_policy
    from equilibrate.run.space import require_space, require_space_of_journey

    if kind == "align":
        journey = Journey(with_base_policy(load_settings(AlignConfig, config, overrides)))
        require_writable(Path(journey.config.output).resolve())
        check_journey(journey)
        budget = proposed_budget(journey)
        if journey.needs_budget and budget is None:
            print("# constraint.budget is proposed once the cost model is there")
        for step in journey.steps(budget):
            print(f"# step {step.name}", dump_config(step.config), sep="\n", end="")
        _warn_here(lambda: print(f"# disk: {require_space_of_journey(journey)}"))
        return 0
    settings = load_settings(RUN_KINDS[kind], config, overrides)
    require_writable(Path(settings.output).resolve())
    whole = with_base_policy(settings)
    check_inputs(whole)
    print(dump_config(settings), end="")
    _warn_here(lambda: print(f"# disk: {require_space(whole)}"))
    _warn_here(lambda: check_this_machine(settings))
    return 0


def plan(
    config: Configs = (),
    overrides: Overrides = (),
    kind: Annotated[
        Literal["train", "fit"], arg(help="Which command the settings are for.")
    ] = "train",
    gpus: Annotated[str, arg(help="Kind and number of GPUs, as H100:8; none: this machine.")] = "",
) -> int:
    """Say how much memory each process of a run will need, and what to change if it is not there;
    of models the config.json is enough."""
    from equilibrate.config.files import RUN_KINDS, load_settings
    from equilibrate.planner.commands import show_plan
    from equilibrate.run.policies import with_base_policy

    return show_plan(with_base_policy(load_settings(RUN_KINDS[kind], config, overrides)), gpus)


def _warn_here(check: Callable[[], object]) -> None:
    """Only a warning: the run may be meant for other machines."""
    try:
        check()
    except ResourceError as error:
        print(f"warning: here {error}", file=sys.stderr)


def import_(
    source: Annotated[
        Positional[Path],
        arg(help="A GGUF file, or a model folder with safetensors or .bin.", metavar="SOURCE"),
    ],
    out: Annotated[Positional[Path], arg(help="Folder to be made.", metavar="OUT")],
    adapter: Annotated[
        Path | None, arg(help="PEFT folder to be merged in.", metavar="FOLDER")
    ] = None,
    tokenizer: Annotated[
        Path | None, arg(help="Folder to take tokenizer and template from.", metavar="FOLDER")
    ] = None,
) -> int:
    """Make a plain model folder of a GGUF file, of .bin or sharded weights, of base and adapter."""
    from equilibrate.models.importing import describe, import_model
    from equilibrate.run.disk import as_resource_error

    with as_resource_error(out):
        note, is_new = import_model(source, out, adapter=adapter, tokenizer=tokenizer)
        print(describe(note, out))
    if not is_new:
        print("It was there already, made of the same files.")
    return 0


def doctor() -> int:
    """Check this machine: packages, memory, compiler, cluster, ports."""
    from equilibrate.doctor import exit_code, render, run_checks

    checks = run_checks()
    print(render(checks))
    return exit_code(checks)


def fdc() -> int:
    """Label, audit, sample and synthesize prompts by class of risk: `fdc label`, for example."""
    return main(["fdc", "--help"])


def _connect(url: str, model: str, key: str, form: Mapping[str, object] | None) -> Endpoint:
    from equilibrate.evaluation.served_model import ServedModel

    return ServedModel(base_url=url, model=model, api_key_variable=key, response_format=form)


def label(options: OmitArgPrefixes[LabelOptions]) -> int:
    """Give every prompt of a file its class, with a confidence, and set the unsure ones apart."""
    return fdc_commands.label(options, _connect)


def synthesize() -> int:
    """Make prompts of both risks, or safe answers out of notes: `fdc synthesize mhd | answers`."""
    return main(["fdc", "synthesize", "--help"])


def mhd(options: OmitArgPrefixes[MhdOptions]) -> int:
    """Write MHD prompts from pairs of EHD and IHD ones by a model, each with a judge's class."""
    return synthesize_commands.mhd(options, _connect)


def answers(options: OmitArgPrefixes[AnswersOptions]) -> int:
    """Write safe answers to EHD prompts out of notes on risks: draft, review, revision, verdict."""
    from equilibrate.evaluation.endpoint_judge import grading_question, parse_verdict

    return synthesize_commands.answers(options, _connect, grading_question, parse_verdict)


COMMANDS: dict[str, Callable[..., int]] = {
    command.__name__.rstrip("_"): command
    for command in (
        demo, align, import_, scorer, data, split, fdc, train, fit, study, evaluate, judge, report,
        export, serve, validate, plan, doctor,
    )
}  # fmt: skip
GROUPS: dict[str, dict[str, Callable[..., int]]] = {
    "fdc": {
        "label": label,
        "audit": fdc_commands.audit,
        "sample": fdc_commands.sample,
        "synthesize": synthesize,
    },
    "fdc synthesize": {"mhd": mhd, "answers": answers},
}
"""Commands with commands of their own."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns: 0, or 2 settings, 3 data, 4 resources, 5 numerics, 6 a judge that is unfit, 143 stopped
        (saved, can be resumed).
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    commands, prog = COMMANDS, "python -m equilibrate"
    description = "Align a language model: helpful by reward, harmless by constraint."
    group = ""
    while given and (name := f"{group} {given[0]}".lstrip()) in GROUPS:
        description = str(commands[given.pop(0)].__doc__)
        group, commands = name, GROUPS[name]
    prog = f"{prog} {group}".rstrip()
    try:
        code: int = tyro.extras.subcommand_cli_from_dict(
            commands, prog=prog, description=description, args=given
        )
    except EquilibrateError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        if error.filename is None:  # of a connection, not of a file
            raise
        print(f"error: {error.filename}: cannot be used ({error.strerror})", file=sys.stderr)
        return ResourceError.exit_code
    return code


def _require_siblings(package: str = "actors") -> None:
    if importlib.util.find_spec(package) is None:
        raise ConfigError(
            f"the package {package!r} is not beside 'equilibrate': the installed library alone "
            "cannot start a run; go to the source tree and use `python -m equilibrate ...` there"
        )
