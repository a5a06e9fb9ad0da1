"""What finite data may claim of a candidate, whichever library found it."""
