"""Scripted demonstrations, written as LeRobot datasets."""
