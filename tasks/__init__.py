"""The work of the stages, in rooms from the top floor down. A room imports only rooms below it.

stages      Prefect's edge: one thin module per stage, and the run around a flow
plan        answers to `ctclip plan`: the items that a rerun would make, and why
training    trainings: manifests, processes, GPU orders, records of steps and models
evaluation  latents, predictions, metrics, comparisons
report      the HTML page of an evaluation, and the index page
models      models of a data root: presets, recipes, finding and importing
upkeep      garbage collection, `doctor`, `verify`, backups, queries
labels      labellers of a data root, and the reports that they read
volumes     volumes on their way to shards: jobs, download, conversion, compaction
sources     CT-RATE in a folder or on the Hub, RAD-ChestCT, phantoms; their tables and changes
hub         the Hugging Face Hub: requests, files, models
run         the run of a stage: fingerprints, pending items, leases, records, publish, logs
settings    every default of the orchestration
"""
