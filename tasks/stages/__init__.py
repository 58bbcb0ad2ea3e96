"""The room of Prefect's edge: one thin module per stage, and the run around a flow."""
