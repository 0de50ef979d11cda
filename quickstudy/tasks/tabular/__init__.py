"""Tasks of tables and ratings."""
