"""The report's part on estimates: cells of kind "estimate", with what was measured beside them.

An estimated number never enters a measured one. They meet in one figure and one table, where each
stands under its own name.

    families: what is read → tables, figures, verdicts → section: what the report is given
"""
