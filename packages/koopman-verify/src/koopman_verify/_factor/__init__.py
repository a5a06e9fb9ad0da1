"""From snapshots to the operator on a span: data, the joint triangular factor, and what is read off it."""
