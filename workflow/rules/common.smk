# The plan answers every question about names, paths, inputs and specs; rules only ask it.
from fewstep.common import preloaded
from fewstep.config import ConfigError
from fewstep.config.base import complete
from fewstep.plan import Plan
from fewstep.plan.paths import FILES

# With `config:` in a module statement, the files and the command line are those of another workflow.
outer = workflow.modifier.skip_configfile
try:
    config = complete(
        config, repository, {} if outer else workflow.config_settings.config
    )
    workflow.register_pathvars(**config["pathvars"])
    config["pathvars"] = {
        name: workflow.pathvars.get(name) for name in config["pathvars"]
    }
    plan = Plan(config, repository, () if outer else workflow.configfiles)
except ConfigError as error:
    raise WorkflowError(str(error)) from None


def inputs(stage):
    """The input files of a stage's job, by name."""
    return lambda wildcards: plan.inputs(stage, dict(wildcards.items()))


wildcard_constraints:
    **plan.constraints,
