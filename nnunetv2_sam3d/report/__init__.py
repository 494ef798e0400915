"""One self-contained report on trainers: tables, figures, a page. Computes no measure of its own."""
