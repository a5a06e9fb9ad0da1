"""Systems that finitely many snapshots cannot tell apart, and a game with any black box."""
