"""The numeric core: volumes, shards, CT-CLIP, its training and its evaluation. Runs alone on a bare GPU machine."""
