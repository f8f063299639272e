# What the command line asks for, before Snakemake looks for the rules that make it: a target that nothing makes
# is one line, with the nearest that there is. Where this is a part of another workflow, that one decides.
from snakemake.cli import get_argument_parser

from fewstep.plan.targets import check, explain

if (
    workflow.is_main_process
    and Path(workflow.main_snakefile)
    in (repository / "Snakefile", repository / "workflow/Snakefile")
    and workflow.storage_settings.default_storage_provider is None
    and "snakemake" in Path(sys.argv[0]).parts[-2:]
):
    words = get_argument_parser().parse_args(sys.argv[1:])
    parts = {*words.forcerun, *words.until, *words.omit_from, *words.prioritize}
    whole = {rule.name for rule in workflow.rules if not rule.has_wildcards()}
    try:
        for name in dict.fromkeys([*words.targets, *sorted(parts)]):
            target = os.path.relpath(name)
            if workflow.is_rule(name):
                if name in words.targets and name not in whole:
                    raise ConfigError(
                        f"target {name}: this rule makes many files; name one of them"
                    )
            elif any(made.is_producer(target) for made in workflow.rules) or any(
                made.is_producer(name) for made in workflow.rules
            ):
                check(plan, target)
            else:
                known = (
                    {rule.name for rule in workflow.rules} if name in parts else whole
                )
                raise ConfigError(explain(plan, name, known))
    except ConfigError as error:
        sys.exit(str(error))
