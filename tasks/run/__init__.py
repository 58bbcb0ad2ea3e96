"""The run of a stage: fingerprints, pending items, leases, records, publish, logs."""
