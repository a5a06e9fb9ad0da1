"""Named systems with exact answers, and the rules of quadrature that fit them."""
