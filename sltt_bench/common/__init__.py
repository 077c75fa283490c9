"""What all layers use, and what uses none of them: errors, formats, files, plug-ins."""
