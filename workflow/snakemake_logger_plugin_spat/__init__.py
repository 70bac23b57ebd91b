"""A display for Snakemake: what is running, how far it is, and how much time is left.

Snakemake finds this package by its name and uses it with `--logger spat`, as the profiles do. It
replaces Snakemake's own messages about single jobs; errors and everything else are printed as they
are. The complete log of Snakemake is in `.snakemake/log`. Neither `spat` nor torch is imported
here: the Snakefile checks that `spat` is the package of its own folder.
"""

from snakemake_logger_plugin_spat.handler import LogHandler

__all__ = ["LogHandler"]
