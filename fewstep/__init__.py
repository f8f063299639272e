"""fewstep: the tables and figures of few-step image-generation papers as one Snakemake DAG."""

__version__ = "0.2.0"
