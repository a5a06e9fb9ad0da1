"""Observables: what is known of each function, and how functions are put together or learned."""
