"""Volumes on their way to shards: jobs, downloads, conversion, compaction."""
