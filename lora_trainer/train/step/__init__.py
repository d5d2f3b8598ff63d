"""One optimizer step: objective, accumulation, precision, attention, CUDA graphs, compiling."""
