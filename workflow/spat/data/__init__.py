"""From the published files to windows: registry, download, series, windows."""
