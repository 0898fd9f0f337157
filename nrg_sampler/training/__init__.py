"""Preference pairs become a reward."""
