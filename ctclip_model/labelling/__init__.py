"""Report labellers at work: the transformer, and tf-idf over stated terms."""
