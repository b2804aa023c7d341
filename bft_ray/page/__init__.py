"""A page: plain data (sections, figures, tables, numbers), and one self-contained HTML file from it."""
