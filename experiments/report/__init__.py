"""What a grid found: tables with honest statistics, and figures, as Markdown and as one HTML page."""
