#!/bin/sh
# Print the status of the job with the given name as Snakemake expects it: success, failed or running.
if ! ended=$(kubectl get job "$1" --ignore-not-found \
    -o 'jsonpath={.metadata.name}:{range .status.conditions[?(@.status=="True")]}{.type} {end}'); then
    echo running # the cluster does not answer, so Snakemake asks again later
    exit
fi
case "$ended" in
    *Complete*) echo success ;;
    *Failed* | "") echo failed ;; # an empty answer means that the job was deleted
    *) echo running ;;
esac
