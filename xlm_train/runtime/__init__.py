"""Processes and files: what a run needs of the machine. Knows no language model."""
