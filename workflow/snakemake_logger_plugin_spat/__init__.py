"""A display for Snakemake: the running jobs, their progress and the time left.

Snakemake finds this package by its name and uses it with `--logger spat`, as the profiles do. The
display replaces Snakemake's messages about single jobs; errors and all other messages are printed
unchanged. The complete log of Snakemake is in `.snakemake/log`. This package imports neither `spat`
nor torch, since the Snakefile first checks that `spat` is the package of its own folder.
"""

from snakemake_logger_plugin_spat.handler import LogHandler

__all__ = ["LogHandler"]
