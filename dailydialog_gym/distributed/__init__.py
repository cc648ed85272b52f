"""DeepSpeed: the ranks of a job, their engines, and a run whose work they share."""
