"""Clicks of users: files, geometry, and whole volumes predicted with them."""
