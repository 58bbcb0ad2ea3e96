"""Volumes on their way to shards: jobs, download, conversion, compaction."""
