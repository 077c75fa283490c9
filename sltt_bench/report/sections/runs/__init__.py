"""The report's part on what was measured by runs: one part a recipe, one a group of comparable cells."""
