# The plan answers every question about names, paths, inputs and specs; rules only ask it.
from fewstep.config import ConfigError
from fewstep.config.base import complete
from fewstep.environment import MOST_RETRIES
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


# A training or sampling resumes: all retries of the profile are for its time limits. Of another stage a retry mends
# what passes, as a lost node or network does; what the login node writes in an instant is not tried again.
FEW_RETRIES = min(MOST_RETRIES, getattr(workflow.execution_settings, "retries", 0))


def which_attempt(wildcards, attempt):
    """1, and more of a retry; a resource, as Snakemake tells it to those only."""
    return attempt
