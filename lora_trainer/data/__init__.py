"""Pictures and their captions: found, judged, placed into buckets, drawn. Knows tensors, knows no model."""
