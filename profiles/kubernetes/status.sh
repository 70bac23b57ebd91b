#!/bin/sh
# How the job of this name ended: success, failed or running, as Snakemake asks for it.
if ! ended=$(kubectl get job "$1" --ignore-not-found \
    -o 'jsonpath={.metadata.name}:{range .status.conditions[?(@.status=="True")]}{.type} {end}'); then
    echo running # the cluster does not answer now: ask again
    exit
fi
case "$ended" in
    *Complete*) echo success ;;
    *Failed* | "") echo failed ;; # or the job was deleted
    *) echo running ;;
esac
