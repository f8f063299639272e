# The plan answers every question about names, paths, inputs and specs; rules only ask it.
from fewstep.common import preloaded
from fewstep.config import ConfigError
from fewstep.config.base import are_texts, command_line_values, complete, passed_on
from fewstep.environment import MOST_RETRIES, profiles_of
from fewstep.plan import Plan
from fewstep.plan.paths import FILES, LOGS

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
    for note in plan.config.notes if workflow.is_main_process else ():
        logger.info(note)
except ConfigError as error:
    # A WorkflowError would stand among lines that blame this file.
    sys.exit(str(error))


def inputs(stage):
    """The input files of a stage's job, by name. What is only told of a result does not make it anew."""

    def found(wildcards):
        files = plan.inputs(stage, dict(wildcards.items()))
        told = [ancient(file) for file in files.get("sampling", [])]
        return files | ({"sampling": told} if told else {})

    return found


def environment(stage):
    """The conda environment of a stage's job."""
    return (
        lambda wildcards: f"../../envs/{plan.environment(stage, dict(wildcards.items()))}.yaml"
    )


def profiles(wildcards):
    """The profiles of this call, or else that of a cluster."""
    places = [Path(os.environ.get("PWD", "")), repository]
    return profiles_of(sys.argv, places) or [repository / "profiles/slurm"]


def watch(wildcards):
    """Options with which a training samples itself, where the profile asks for it; they rerun nothing."""
    asked = workflow.resource_settings.overwrite_resources.get("train", {})
    options = asked["options"] if "options" in asked else ""
    if "--watch-every" not in str(getattr(options, "raw", options)):
        return ""
    words = plan.watch(wildcards.run, wildcards.seed)
    return "".join(f" {shlex.quote(word)}" for word in words)


def keep_state(wildcards):
    """The option of a training with which another one goes on; it reruns nothing."""
    return " --keep-state" if wildcards.run in plan.continued else ""


wildcard_constraints:
    **plan.constraints,


# A training or sampling resumes: all retries of the profile are for its time limits. Of another stage a retry mends
# what passes, as a lost node or network does; what the login node writes in an instant is not tried again.
FEW_RETRIES = min(MOST_RETRIES, getattr(workflow.execution_settings, "retries", 0))


def which_attempt(wildcards, attempt):
    """1, and more of a retry; a resource, as Snakemake tells it to those only."""
    return attempt
