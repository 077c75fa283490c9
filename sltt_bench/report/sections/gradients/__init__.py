"""The report's part on the gradient taken apart: cells of kind "analysis".

families: what is read → tables, figures → section: what the report is given
"""
