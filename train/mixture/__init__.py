"""Instance-level mixtures: labels, annotators, weights fitted from small proxy runs, and a corpus to try them on."""
