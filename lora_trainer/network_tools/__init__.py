"""What can be done with a trained file: told what it is, checked, made smaller, added up, taken out of a checkpoint, renamed, labelled."""
