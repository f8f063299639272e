# The plan answers every question about names, paths, inputs and specs; rules only ask it.
from fewstep.config import ConfigError
from fewstep.config.base import are_texts, command_line_values, complete, passed_on
from fewstep.plan import Plan
from fewstep.plan.paths import FILES

# With `config:` in a module statement, the files and the command line are those of another workflow.
outer = workflow.modifier.skip_configfile
try:
    line = command_line_values(workflow.config_settings.config_args or [])
    if outer:
        line = passed_on(config, workflow.config_settings.config, line)
    config = complete(config, repository, line)
    if are_texts(config.get("pathvars")):
        workflow.register_pathvars(**config["pathvars"])
        config["pathvars"] = {
            name: workflow.pathvars.get(name) for name in config["pathvars"]
        }
    plan = Plan(config, repository, () if outer else workflow.configfiles, line)
except ConfigError as error:
    # A WorkflowError would stand among lines that blame this file.
    sys.exit(str(error))


def inputs(stage):
    """The input files of a stage's job, by name."""
    return lambda wildcards: plan.inputs(stage, dict(wildcards.items()))


wildcard_constraints:
    **plan.constraints,
