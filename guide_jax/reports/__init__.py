"""Results as pictures, tables and a page."""
