"""How results are shown, as score tables and as curves. It needs no torch, and none of the training libraries."""
