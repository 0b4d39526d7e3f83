"""Everything that a GPU is needed for, in one command of four stages, each within a few minutes and to be resumed."""
