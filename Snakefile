# The workflow is workflow/Snakefile; this file lets `snakemake` start in this folder.
include: "workflow/Snakefile"


# An include does not set the default target.
workflow.default_target = "all"
