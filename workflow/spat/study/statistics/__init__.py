"""The statistics that the pages share: averages, intervals, tests and ranks."""
