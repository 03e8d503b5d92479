"""Published weights: which exist, how they are downloaded, their decoders."""
