"""What the leaderboard runs: one module per kind of tool, and the pure parts of its table."""
