"""Planning: a recipe is read and checked, and becomes a plan of cells. Does not load torch."""
