"""What touches the device: embedders, the index of vectors, and the one thread that owns both."""
