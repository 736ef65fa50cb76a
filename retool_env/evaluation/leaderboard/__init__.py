"""The leaderboard: the runs of several models in tables, each table of runs that are comparable."""
