"""Network files of every program: the names of their keys, the layers that they are for, the scale of each layer."""
