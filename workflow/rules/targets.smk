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
    names = {rule.name for rule in workflow.rules if not rule.has_wildcards()}
    parts = {*words.forcerun, *words.until, *words.omit_from, *words.prioritize}
    for target in [*words.targets, *sorted(parts)]:
        if workflow.is_rule(target):
            if target not in names and target not in parts:
                sys.exit(
                    f"target {target}: this rule makes many files; name one of them"
                )
        elif any(rule.is_producer(os.path.relpath(target)) for rule in workflow.rules):
            try:
                check(plan, os.path.relpath(target))
            except ConfigError as error:
                sys.exit(str(error))
        elif not os.path.exists(target):
            sys.exit(explain(plan, target, names))
