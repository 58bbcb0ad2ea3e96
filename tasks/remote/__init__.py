"""Files of the Hub and of buckets: facts, downloads that resume and are checked, and the stores that hold them."""
