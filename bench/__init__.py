"""Side by side with the newest peers: ``make bench``."""
