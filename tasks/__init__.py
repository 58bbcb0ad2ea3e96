"""The stages and what they stand on: records, leases, planning, fan-out, sources. Only `stages` imports Prefect."""
